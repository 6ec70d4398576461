"""docs/documents.md names every section of the five documents, and only commands and tests that exist."""

import ast
import re
from functools import cache
from pathlib import Path

import click
import pytest

from loopline.cli.root import root

TESTS = Path(__file__).resolve().parents[1]
PAGE = TESTS.parent / "docs" / "documents.md"
COLUMNS = ["section", "what it asks", "loopline", "test"]

# The headings of the documents, in their order; the third has none, its paragraphs stand for them.
SECTIONS: tuple[tuple[str, ...], ...] = (
    (
        "前言",
        "為什麼需要 Model Registry?",
        "SageMaker Pipelines 和一般 CI/CD 的差異",
        "第一步:Model Registry — 版本管理",
        "第二步:SageMaker Pipeline — 自動化訓練→登記",
        "第三步:CI/CD 整合",
        "第四步:API Gateway — 公開 API",
        "第五步:CloudWatch 監控",
        "完整 MLOps 閉環",
        "小結",
        "GitHub",
    ),
    (
        "1. ML CI/CD Pipeline 的核心概念",
        "數據準備",
        "模型訓練",
        "模型驗證與測試",
        "模型打包與部署",
        "模型監控與管理",
        "安全性與可擴展性",
        "2. 在 Azure ML 上構建 ML CI/CD 管道",
        "(1) Azure ML 架構",
        *(
            f"(2) Azure ML Pipeline 的步驟: {part}"
            for part in ("建立數據管道", "訓練與測試", "模型部署", "CI/CD 自動化")
        ),
        "3. 在 AWS 上構建 ML CI/CD 管道",
        "(1) AWS ML Pipeline 架構",
        *(f"(2) AWS ML Pipeline 的步驟: {part}" for part in ("準備數據", "模型訓練", "模型部署", "CI/CD 自動化")),
        *(f"4. 高可用性、擴展性與安全性: {part}" for part in ("高可用性", "擴展性", "安全性")),
        "結論",
    ),
    (
        "完善的MLOps流程架构",
        "自动化模型重新训练和特征仓库",
        "基线场景与高级场景",
        "代码管理",
        "项目模板",
        "冠军与挑战者模型组",
        "项目生命周期自动化管理",
        "构建自动化机器学习流水线",
        "审批机制",
        "MLflow事件监听",
        "模型注册中心",
        "模型测试环节",
        "监控",
        "技术指标监控",
        "最后",
    ),
    (
        "MLOps 的核心目標",
        "場景設定",
        "Azure Machine Learning 在 MLOps 中的核心組件",
        "步驟 1:專案設定與原始碼管理",
        "步驟 2:數據準備與管理",
        "步驟 3:開發訓練腳本",
        "步驟 4:定義環境",
        "步驟 5:執行和追蹤訓練作業",
        "步驟 6:模型評估與註冊",
        "步驟 7:模型部署",
        "步驟 8:模型監控",
        "步驟 9:自動化管線與再訓練",
        "步驟 10:CI/CD",
        "總結",
        "AWS S3 與 AWS SageMaker 詳解",
        "一、 AWS S3 (Simple Storage Service) 介紹",
        "二、 AWS SageMaker 介紹",
        "三、 AWS MLOps 的 7 個核心功能描述與示例概念",
        "1. 數據管理與版本控制",
        "2. 實驗管理與追蹤",
        "3. 模型訓練與自動化",
        "4. 模型管理與版本控制",
        "5. 模型部署與服務",
        "6. 模型監控與再訓練",
        "7. ML 管道與工作流自動化",
        "AWS 總結",
    ),
    (
        "8.1 模型封裝(Model Packaging)",
        "8.2 API 部署(API Deployment)",
        "8.2.1 選擇 Web 框架",
        "8.2.2 容器化(Docker)",
        "8.2.3 部署到雲端",
        "8.3 監控指標(Monitoring Metrics)",
        "8.3.1 監控工具",
        "8.3.2 例子:Prometheus Exporter",
        "8.4 模型再訓練(Retraining)",
        "8.5 MLOps 流程設計(MLOps Pipeline)",
        "8.5.1 关键组成",
        "8.6 常見工具與平台(Tools & Platforms)",
        "8.6 安全與合規(Security & Governance)",
        "8.7 小結",
    ),
)


def _tables() -> list[list[list[str]]]:
    """The rows of each document's table, without its head."""
    parts = re.split(r"^## \d\. ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    tables = []
    for part in parts:
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line[:1] == "|"]
        assert rows[0] == COLUMNS
        tables.append(rows[2:])
    return tables


ROWS = [(number, row) for number, table in enumerate(_tables()) for row in table]


@cache
def _functions(file: str) -> frozenset[str]:
    path = TESTS / file
    if not path.is_file():
        return frozenset()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def _is_command(words: list[str]) -> bool:
    command: click.Command | None = root
    for word in words:
        if not isinstance(command, click.Group):
            return False
        command = command.get_command(click.Context(command), word)
    return command is not None and not isinstance(command, click.Group)


@pytest.mark.parametrize("number", range(len(SECTIONS)))
def test_every_section_of_a_document_has_its_row_in_order(number: int) -> None:
    assert [row[0] for row in _tables()[number]] == list(SECTIONS[number])


@pytest.mark.parametrize(
    "row",
    [row for _, row in ROWS],
    ids=[f"document-{number + 1}-row-{place}" for place, (number, _) in enumerate(ROWS, 1)],
)
def test_what_a_row_names_exists(row: list[str]) -> None:
    _, asked, commands, tests = row
    named = re.findall(r"`loopline ([^`]+)`", commands)
    assert asked
    assert named
    assert [name for name in named if not _is_command(name.split())] == []
    shown = re.findall(r"`([^`]+)::(\w+)`", tests)
    assert [f"{file}::{name}" for file, name in shown if name not in _functions(file)] == []
    assert shown or "planned" in tests
