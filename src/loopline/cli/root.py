"""The tree of commands: names and one line of help stand here, so that ``--help`` imports nothing else."""

import os
import sys
from importlib import import_module
from typing import Any, NamedTuple

import click

import loopline
from loopline.errors import LooplineError

INTERRUPTED = 130


class Entry(NamedTuple):
    """Where a command is, and what ``--help`` says about it."""

    place: str  # module:attribute below loopline.cli
    help: str


COMMANDS: dict[str, Entry] = {
    # the loop, in its order
    "up": Entry("up:up", "Start loopline on this machine."),
    "init": Entry("init:init", "Make a new project from a template."),
    "check": Entry("check:check", "Explain every mistake in a project, without a server."),
    "remote": Entry("remote:remote", "How `git push` reaches this server."),
    "env": Entry("env:env", "The environment for scripts written for SageMaker."),
    "diff": Entry("loop:diff", "Show what apply would change."),
    "apply": Entry("loop:apply", "Bring the platform to this project's loop.toml."),
    "run": Entry("loop:run", "Upload the working tree and run its pipeline."),
    "approve": Entry("versions:approve", "Approve a model version."),
    "reject": Entry("versions:reject", "Reject a model version."),
    "release": Entry("endpoints:release", "Move an endpoint's traffic to a version."),
    "rollback": Entry("endpoints:rollback", "Put an endpoint back on the version before."),
    "retrain": Entry("retrainings:retrain", "Retrain a project's model now."),
    "live": Entry("endpoints:live", "Which version serves (or served) which share."),
    "why": Entry("requests:why", "Everything that one prediction rests on."),
    "loadtest": Entry("loadtest:loadtest", "What callers see of an endpoint under load."),
    "export": Entry("export:export", "A version as a folder that serves it elsewhere."),
    "logs": Entry("logs:logs", "What predict code prints, by request id."),
    "serve": Entry("serve:serve", "Serve a model file, or a project's predict code, from here."),
    "status": Entry("status:status", "The whole loop at a glance."),
    "doctor": Entry("doctor:doctor", "What this machine lacks, or what fails in scripts written for SageMaker."),
    # nouns
    "access-keys": Entry("access_keys:access_keys", "Key pairs that sign requests, for AWS's clients."),
    "alarms": Entry("alarms:alarms", "Alarms and their history."),
    "assets": Entry("assets:assets", "Data assets."),
    "audit": Entry("events:audit", "The chain of hashes over all events."),
    "batch": Entry("batch:batch", "Tables scored by a version."),
    "blueprints": Entry("blueprints:blueprints", "Variants that an endpoint is brought to, all at once."),
    "credential": Entry("remote:credential", "The key, when git asks for it."),
    "dashboards": Entry("dashboards:dashboards", "Dashboards that are kept for whoever draws them."),
    "endpoints": Entry("endpoints:endpoints", "Endpoints, their traffic, drift and quality."),
    "environments": Entry("environments:environments", "Built environments."),
    "events": Entry("events:events", "Everything that happened."),
    "executions": Entry("executions:executions", "Executions of pipelines, their steps and logs."),
    "images": Entry("images:images", "Which packages stand for a container image's name."),
    "invocations": Entry("invocations:invocations", "Asynchronous invocations: asked now, answered later."),
    "functions": Entry("functions:functions", "Functions behind routes of their own."),
    "gateway": Entry("gateway:gateway", "The public port, and proxies in front of it."),
    "jobs": Entry("jobs:jobs", "Work on compute, and its logs."),
    "keys": Entry("keys:keys", "API keys."),
    "metrics": Entry("metrics:metrics", "Metrics that people send, and what is measured of endpoints."),
    "models": Entry("models:models", "Registered models and their aliases."),
    "pipelines": Entry("pipelines:pipelines", "Pipelines that are kept here by name, without a project."),
    "objects": Entry("objects:objects", "Buckets and their objects."),
    "projects": Entry("projects:projects", "Projects."),
    "pushes": Entry("pushes:pushes", "Commits and trees that reached the platform."),
    "requests": Entry("requests:requests", "Predictions as they were logged, and labels."),
    "retrainings": Entry("retrainings:retrainings", "Retrainings: what asked for them, and what came of it."),
    "roles": Entry("roles:roles", "The names that roles go by elsewhere."),
    "rollouts": Entry("rollouts:rollouts", "How traffic moved, and why."),
    "runs": Entry("runs:runs", "Tracked runs: parameters, metrics, artifacts."),
    "scripts": Entry("scripts:scripts", "Programs written for a container, run without one."),
    "servables": Entry("servables:servables", "Model files, code and an environment that endpoints run."),
    "tags": Entry("tags:tags", "Words on any record, to find it by."),
    "tests": Entry("tests:tests", "What versions have to show before traffic moves."),
    "topics": Entry("topics:topics", "Notifications: topics, subscriptions, deliveries."),
    "triggers": Entry("triggers:triggers", "What starts pipelines by itself."),
    "users": Entry("users:users", "People and programs."),
    "versions": Entry("versions:versions", "Model versions, their evidence and lineage."),
    "warnings": Entry("warnings:warnings", "What callers were warned of."),
}


class LazyGroup(click.Group):
    """Imports a command when it is called, not when it is listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """In the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the command's module."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry.place.partition(":")
        command: click.Command = getattr(import_module(f"loopline.cli.{module}"), attribute)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """As click's, with a suggestion."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            close = difflib.get_close_matches(args[0], COMMANDS, 1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            ctx.fail(f"There is no command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Verbs first, then nouns, from the table alone."""
        names = list(COMMANDS)
        first_noun = names.index("access-keys")
        for title, part in (("The loop", names[:first_noun]), ("Look and manage", names[first_noun:])):
            with formatter.section(title):
                formatter.write_dl([(name, COMMANDS[name].help) for name in part])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(loopline.__version__, prog_name="loopline")
def root() -> None:
    """The whole MLOps loop in one program: push, train, gate, approve, release, watch, retrain."""


def run(argv: list[str]) -> int:
    """Run one command line; gives the exit code. Errors go to stderr; with ``--debug`` where they came from, too."""
    try:
        result = root.main(args=argv, prog_name="loopline", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except LooplineError as error:
        if "--debug" in argv:
            raise
        asked = error.details.get("request_id") if error.status >= 500 else None  # what its log is searched for
        click.echo(f"error: {error.message}" + (f" ({asked})" if asked else ""), err=True)
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads: say nothing more at exit
        return 0
    except Exception as error:
        if "--debug" in argv:
            raise
        if isinstance(error, OSError) and error.filename and error.strerror:  # a file of whoever typed it
            click.echo(f"error: {error.filename}: {error.strerror.lower()}", err=True)
            return 1
        click.echo(
            f"error: {type(error).__name__}: {error}; this is a mistake in loopline; --debug shows where", err=True
        )
        return 1
    return result if isinstance(result, int) else 0
