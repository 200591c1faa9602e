"""Slurm: FLARE's script starts by the site's own."""

from prepared_kits import SITE, SLURM, run


def test_slurm_gets_a_script_for_flare_and_its_own_site_script_starts_the_kit(prepared, tmp_path):
    startup = prepared["slurm", SITE] / "startup"
    assert {path.name for path in startup.glob("*.s*")} == {"parent.slurm", "start_slurm.sh", "sub_start.sh"}
    assert "#SBATCH --partition=long" in (startup / "parent.slurm").read_text("utf-8")
    (tmp_path / "startup").mkdir()
    (tmp_path / "startup" / "sub_start.sh").write_text('echo "$0 $*" "$OMP_NUM_THREADS"; command -v python3\n')
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python3"
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    variables = {"KIT": str(tmp_path), "ENVIRONMENT": str(tmp_path), "SLURM_CPUS_PER_TASK": "3"}
    done = run("bash", SLURM / "site.sbatch", env=variables)
    assert done.stdout.splitlines() == [f"{tmp_path}/startup/sub_start.sh --once 3", str(python)]
    assert "the unpacked kit" in run("bash", SLURM / "site.sbatch").stderr
