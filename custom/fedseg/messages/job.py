"""The job at hand, from FLARE's context: its plan, its name, and the profile of the site."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext

from fedseg.contract.allowed_job_files import SERVER_FILE, check_app_folder
from fedseg.contract.plan import Plan, read_plan
from fedseg.contract.protocol import CLIENT_FILE, PLAN_FILE
from fedseg.contract.report import ReportField, job_fields, named_classes, task_fields
from fedseg.errors import ConfigurationError
from fedseg.files.documents import read_json
from fedseg.site.profile import SiteProfile, read_profile


def site_profile(fl_ctx: FLContext) -> SiteProfile:
    """The profile of this process's site, read anew: it and its policy may change while a job runs.

    Raises:
        RefusalError, ConfigurationError: see ``read_profile``.
    """
    workspace = fl_ctx.get_engine().get_workspace()
    work_folder = Path(workspace.get_run_dir(fl_ctx.get_job_id()))
    return read_profile(fl_ctx.get_identity_name(), Path(workspace.get_site_config_dir()), work_folder)


def check_job_files(fl_ctx: FLContext) -> None:
    """Look at the files of the job at hand once more, where its parent process may be set up not to.

    Raises:
        ConfigurationError: see ``check_app_folder``; the text tells of the job only.
    """
    workspace = fl_ctx.get_engine().get_workspace()
    check_app_folder(Path(workspace.get_app_config_dir(fl_ctx.get_job_id())).parent)


def job_plan(fl_ctx: FLContext) -> Plan:
    """The plan of the job at hand, from its configuration folder in this process's workspace.

    Raises:
        ConfigurationError: the file is wrong or missing.
    """
    workspace = fl_ctx.get_engine().get_workspace()
    return read_plan(Path(workspace.get_app_config_dir(fl_ctx.get_job_id())) / PLAN_FILE)


def report_fields(fl_ctx: FLContext) -> dict[str, ReportField]:
    """What the components of the job at hand may report beside the fixed fields, and the range of its scores.

    Raises:
        ConfigurationError: the sites' part of the job cannot be read, or its components contradict one another.
    """
    return task_fields(job_plan(fl_ctx).objective, job_fields(sites_part(fl_ctx)))


def site_parts(fl_ctx: FLContext) -> list[type]:
    """The classes of fedseg of which the sites' part of the job at hand is made.

    Raises:
        ConfigurationError: the sites' part of the job cannot be read.
    """
    return named_classes(sites_part(fl_ctx))


def sites_part(fl_ctx: FLContext) -> Any:
    """The sites' part of the job at hand, which the server has too.

    Raises:
        ConfigurationError: it cannot be read.
    """
    workspace = fl_ctx.get_engine().get_workspace()
    path = Path(workspace.get_app_config_dir(fl_ctx.get_job_id())) / CLIENT_FILE
    return read_json(path, "the sites' part of a job")


def server_rule(fl_ctx: FLContext) -> Any:
    """The rule of aggregation that the job names at its server, built at a site by FLARE, which knows the site's list.

    Raises:
        ConfigurationError: the job names none.
    """
    declared = server_arguments(fl_ctx).get("aggregator")
    if not isinstance(declared, dict):
        raise ConfigurationError("workflow.aggregator", declared, "the rule by which sites merge")
    return fl_ctx.get_engine().build_component(declared)


def server_arguments(fl_ctx: FLContext) -> Mapping[str, Any]:
    """The arguments of the job's workflow, as a site has them in its copy of the job.

    Raises:
        ConfigurationError: they cannot be read.
    """
    workspace = fl_ctx.get_engine().get_workspace()
    path = Path(workspace.get_app_config_dir(fl_ctx.get_job_id())) / SERVER_FILE
    content = read_json(path, "the server's part of a job")
    try:
        return dict(content["workflows"][0]["args"])
    except (KeyError, IndexError, TypeError, ValueError):
        raise ConfigurationError("workflow", None, "the workflow of the job, with its arguments") from None


def job_name(fl_ctx: FLContext) -> str:
    """Name of the job from its ``meta.json``; empty where FLARE does not tell it."""
    meta = fl_ctx.get_prop(FLContextKey.JOB_META)
    return str(meta.get("name", "")) if isinstance(meta, Mapping) else ""
