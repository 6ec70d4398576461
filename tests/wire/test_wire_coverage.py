"""Every operation that is served is driven by a real client in the tests of this folder."""

import ast
from pathlib import Path

from botocore import xform_name

from loopline.fronts.aws.compatibility import GATEWAY
from loopline.fronts.aws.table import TABLE

HERE = Path(__file__).parent
BY_NAME = ("get_paginator", "generate_presigned_url")  # methods of clients that are told an operation's name


def methods(source: str) -> set[str]:
    """What a test names of objects, such as the methods of clients; names of modules it imports are none of them."""
    nodes = list(ast.walk(ast.parse(source)))
    modules = {alias.asname or alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    found = set()
    for node in nodes:
        if isinstance(node, ast.Attribute):
            if not (isinstance(node.value, ast.Name) and node.value.id in modules):
                found.add(node.attr)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in BY_NAME:
            found |= {
                each.value for each in node.args if isinstance(each, ast.Constant) and isinstance(each.value, str)
            }
    return found


def test_every_operation_that_is_served_is_driven() -> None:
    served = {(service, name) for rows in (TABLE, GATEWAY) for service, names in rows.items() for name in names}
    named = set().union(*(methods(path.read_text()) for path in HERE.glob("test_wire_*.py") if path != Path(__file__)))

    absent = sorted(f"{service}.{name}" for service, name in served if xform_name(name) not in named)

    assert len(served) > 100 and absent == []


def test_what_is_of_a_module_is_no_method_of_a_client() -> None:
    found = methods('import re\nre.search("a", "b")\nclient.publish()\nclient.get_paginator("list_roles")')
    assert found == {"publish", "get_paginator", "list_roles"}
