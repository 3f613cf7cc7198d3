"""The examiner: white-box tests of a training step against the plan that it claims to follow."""
