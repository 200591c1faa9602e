"""What a run leaves so that others can check it later: chained records, digests of models, notes beside model files.

Plain Python: what is written lies with the workflows and executors, what is compared with the command.
"""
