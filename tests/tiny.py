"""A configuration small enough to train in a test."""

TINY = {
    "data": {"source": "digits", "image_size": 32, "patch_size": 8},
    "model": {
        "embed_dim": 16,
        "encoder_depth": 1,
        "decoder_depth": 1,
        "num_heads": 2,
        "latent_dim": 4,
        "residual_init": "xavier",  # each token sees the others from the first step on
    },
    "objective": {"groups": 4, "plans": 4},
    "optimizer": {"learning_rate": 1e-3},
    "train": {"batch_size": 16, "total_images": 96},
    "evaluate": {"images": 24, "batch_size": 12},
    "engine": {"name": "accelerate"},
    "metrics": {"port": None},
}
