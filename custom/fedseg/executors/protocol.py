"""Names that server and sites agree on: tasks, headers and meta keys beyond FLARE's own."""

PREPARE = "prepare"

# meta of a task
RUN_ID = "fedseg_run_id"
PLAN_DIGEST = "fedseg_plan"
SPLITS = "fedseg_splits"
MODEL_NAME = "fedseg_model"
TOTALS = "fedseg_totals"
KEEP = "fedseg_keep"
START = "fedseg_start"
LINEAGE = "fedseg_lineage"

# in the answer to `prepare`, beside the counts of cases
STATISTICS = "statistics"

# headers of a reply
REASON = "fedseg_reason"
TEXT = "fedseg_text"
BYTES_UP = "fedseg_bytes_up"
BYTES_DOWN = "fedseg_bytes_down"
