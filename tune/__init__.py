"""The paper's studies as Ray Tune searches over the stages of `pipeline`."""
