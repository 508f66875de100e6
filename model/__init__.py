"""The mathematics: masks, attention, the transformer Ξ, the objective. Knows nothing of files, ranks or DeepSpeed."""
