"""Direct calls between processes of a job: both ends, and what a call looks like."""
