"""The studies: which rows they measure, what the seed claims, the tables and verdicts made of them."""
