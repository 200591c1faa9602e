"""Parts of FLARE's processes that look at a job before FLARE does, by the rules of ``contract.allowed_job_files``."""
