"""The science of AST Pipeline: audio to features, model, training, averaging, prediction. No Ray, no MLflow, no CLI."""
