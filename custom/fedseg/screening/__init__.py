"""Components of FLARE's processes that look at a job before FLARE reads it, by the rules of ``contract.job_files``."""
