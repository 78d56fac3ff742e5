"""The stages of AST Pipeline, one a file: prepare, train, combine, evaluate, register, predict, and run for all."""
