"""Names that server and sites agree on: tasks, headers and meta keys beyond FLARE's own."""

PREPARE = "prepare"
# between `prepare` and the first round, where a method needs arrays of all sites before it
SHARE = "share"
# the second step of a round in encrypted jobs: the arrays, after the server has said what they weigh
UPLOAD = "upload"
# the second step of a round between sites: one of them merges the updates of the others, and hands the model out
MERGE = "merge"

# in jobs of statistics: what a site's cases are like
COUNT = "count"

# in a job's configuration folder, at server and sites alike: the plan, and the sites' part of the job
PLAN_FILE = "fedseg.json"
CLIENT_FILE = "config_fed_client.json"

# meta of a task
RUN_ID = "fedseg_run_id"
PLAN_DIGEST = "fedseg_plan"
SPLITS = "fedseg_splits"
MODEL_NAME = "fedseg_model"
# whether a model is scored as it is, without layers that sites keep for themselves
AS_IT_IS = "fedseg_as_it_is"
TOTALS = "fedseg_totals"
KEEP = "fedseg_keep"
START = "fedseg_start"
LINEAGE = "fedseg_lineage"
# of each site the last round in which it took part, as pairs; and whether a site may go on without what it has lost
LAST = "fedseg_last"
FRESH = "fedseg_fresh"
# set at the site where a model came encrypted: its name at the server
MODEL_ID = "fedseg_model_id"

# meta of the tasks of encrypted jobs: what an encrypted model consists of, and how an update is to be encrypted
ENCRYPTED_FACTS = "fedseg_encrypted"
WEIGHTS = "fedseg_weights"
SCALE = "fedseg_scale"
MODE = "fedseg_mode"

# meta of the tasks of rounds between sites: the digest of the model that a site is to have, those of others that are
# still wanted, the sites of the round, and how long a leader may take
HELD = "fedseg_held"
WANTED = "fedseg_wanted"
PEERS = "fedseg_peers"
TAKE_OVER = "fedseg_take_over"
# of the task `merge` alone: of each site whose update is merged its cases and steps, and how many updates it takes
PEER_FACTS = "fedseg_peer_facts"
LEAST_PEERS = "fedseg_least_peers"

# meta of the task `train` of BrainTorrent: of each site its name, the digest of its model, and its version; and of the
# answer: what the site made of the models of its peers
OFFERS = "fedseg_offers"
TURN = "fedseg_turn"
# there, too: seconds without progress after which a site does not wait for another one
PEER_TIMEOUT = "fedseg_peer_timeout"

# meta of an update: what the site's filters did, see privacy/update.py
STEPS = "fedseg_privacy"

# meta of `prepare`: names of the sites that are to score models only; and of `submit_model`: which model is asked for
EVALUATE = "fedseg_evaluate"
OWN_MODEL = "fedseg_own_model"
# there, beside what scores call an own model: the personal one, which the run keeps for sites that were never there
OUTSIDE = "outside"

# meta of `validate`: local epochs for which a site goes on with the model for itself, see `workflow.fine_tune`
FINE_TUNE = "fedseg_fine_tune"

# in the answer to `prepare`, in the place of all counts: the site scores models and never trains
EVALUATES = "evaluates"
# in the answer to `prepare`, beside the counts of cases
STATISTICS = "statistics"
# there, too: whether the site's images were drawn by a program
PHANTOMS = "phantoms"

# headers of a reply
REASON = "fedseg_reason"
TEXT = "fedseg_text"
BYTES_UP = "fedseg_bytes_up"
BYTES_DOWN = "fedseg_bytes_down"
