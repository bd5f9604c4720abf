"""The paper's 2-D experiment: what each policy-gradient estimator makes of a surface that is known."""
