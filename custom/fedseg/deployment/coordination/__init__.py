"""A coordinator's session: jobs submitted, waited for, fetched, resumed."""
