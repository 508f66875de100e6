"""The bugs that the tests must see, each a text of the product and what is put in its place: see tests/mutants.py."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """A bug: `new` instead of `old`, a text that stands once in the product. tests: pytest's arguments to see it."""

    name: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTATIONS = (
    # model/
    Mutation(
        "decode-x_S-reads-z",
        "return is_key_BN[:, None, :] & ~(is_observed_BN[:, :, None] & is_z_N)",
        "return is_key_BN[:, None, :].expand(-1, len(is_z_N), -1)",
        ("tests/model/test_attention.py",),
    ),
    Mutation(
        "size-of-T-rounded-down",
        "n_T = np.maximum(1, np.ceil(np.asarray(t_ratio) * (patches - n_S)))",
        "n_T = np.maximum(1, np.floor(np.asarray(t_ratio) * (patches - n_S)))",
        ("tests/model/test_masks.py",),
    ),
    Mutation(
        "kl-divides-by-the-wrong-arm",
        "(posterior.mu_BZ - self.mu_BZ).square() * (-self.logvar_BZ).exp()",
        "(posterior.mu_BZ - self.mu_BZ).square() * (-posterior.logvar_BZ).exp()",
        ("tests/model/test_objective.py",),
    ),
    Mutation(
        "kl-without-beta",
        "return self.reconstruction_B - beta * self.kl_B",
        "return self.reconstruction_B - self.kl_B",
        ("tests/trainer/test_task.py",),
    ),
    Mutation(
        "bound-with-the-constant-of-variance-1",
        "n_values_B * math.log(2 * math.pi * variance))",
        "n_values_B * math.log(2 * math.pi))",
        ("tests/biglearn_vae/test_capabilities.py", "-k", "linear_gaussian"),
    ),
    Mutation(
        "mask-tokens-without-a-position",
        "rows.append(self.mask_token + position_LE[masked_place_N])",
        "rows.append(self.mask_token.expand(len(masked_place_N), -1))",
        ("tests/model/test_biglearn.py",),
    ),
    Mutation(
        "packed-prior-is-a-posterior",
        "of_none = slice(encode.n_z - 1, encode.n_z)",
        "of_none = slice(0, 1)",
        ("tests/model/packed/test_packed.py", "-k", "marginal"),
    ),
    Mutation(
        "pseudo-gibbs-takes-the-variance-for-sigma",
        "noisy_BLD = mean_BLD + variance**0.5 * noise_BN.view_as(x_BLD)",
        "noisy_BLD = mean_BLD + variance * noise_BN.view_as(x_BLD)",
        ("tests/biglearn_vae/test_capabilities.py", "-k", "pseudo_gibbs"),
    ),
    Mutation(
        "metropolis-accepts-what-it-should-refuse",
        "accepted_B = uniform_B.log() < weights_B[0] - weights_B[1]",
        "accepted_B = uniform_B.log() < weights_B[1] - weights_B[0]",
        ("tests/biglearn_vae/test_capabilities.py", "-k", "metropolis"),
    ),
    Mutation(
        "export-is-not-verified",
        'if hashlib.file_digest(file, "sha256").hexdigest() != checksums[name]:',
        "if not checksums[name]:",
        ("tests/biglearn_vae/test_capabilities_of_codes.py",),
    ),
    Mutation(
        "codes-are-not-centred",
        "return (code_BLC.float() - self.mean_C) / self.std_C",
        "return code_BLC.float() / self.std_C",
        ("tests/model/patch_autoencoder/test_codec.py",),
    ),
    Mutation(
        "triton-keeps-the-last-block-of-a-gradient",
        "dz_v_K += tl.sum(",
        "dz_v_K = tl.sum(",
        ("tests/model/packed/test_triton_attention.py",),
    ),
    Mutation(
        "triton-adds-up-blocks-of-keys-unscaled",
        "sum_Q = sum_Q * shrink_Q + tl.sum(p_QN, 1)",
        "sum_Q = sum_Q + tl.sum(p_QN, 1)",
        ("tests/model/packed/test_triton_attention.py", "-k", "long"),
    ),
    Mutation(
        "the-upper-half-is-missing",
        "observed_NN = (place_N < side // 2)",
        "observed_NN = (place_N >= side // 2)",
        ("tests/model/test_masks.py", "-k", "standard_masks"),
    ),
    Mutation(
        "elbo-at-the-reference-with-the-beta-of-training",
        "found.elbo_B(REFERENCE_BETA) for name",
        "found.elbo_B(self.objective.beta) for name",
        ("tests/trainer/test_task.py",),
    ),
    # evaluation/
    Mutation(
        "gaussian-of-what-is-not-centred",
        "delta_BLD = self._patches(given.images_BHWC) - self.mean_LD",
        "delta_BLD = self._patches(given.images_BHWC)",
        ("tests/evaluation/test_gaussian.py", "-k", "filling"),
    ),
    Mutation(
        "gaussian-without-its-noise",
        "sum_MRR.diagonal(dim1=1, dim2=2).add_(self.noise)",
        "sum_MRR.diagonal(dim1=1, dim2=2).add_(1e-9)",
        ("tests/evaluation/test_gaussian.py", "-k", "filling or known_answer"),
    ),
    Mutation(
        "grey-pixel-counts-once",
        "values, copies = self.mean_LD.numel(), 3 // self.channels",
        "values, copies = self.mean_LD.numel(), 1",
        ("tests/evaluation/test_gaussian.py", "-k", "density"),
    ),
    Mutation(
        "grey-channel-with-the-variance-of-a-pixel",
        "noise = beta * self.channels / 3",
        "noise = beta",
        ("tests/evaluation/test_gaussian.py", "-k", "joint_elbo"),
    ),
    Mutation(
        "noise-is-chosen-on-images-of-the-fit",
        "ConditionalGaussian.fit(images_NHWC[~is_left_out_N], patch_size, NOISES[0])",
        "ConditionalGaussian.fit(images_NHWC, patch_size, NOISES[0])",
        ("tests/evaluation/test_gaussian.py", "-k", "left_out"),
    ),
    # data/
    Mutation(
        "exif-turned-the-other-way",
        "{2, 3, 7, 8}, {3, 4, 6, 7}, {5, 6, 7, 8}",
        "{2, 3, 6, 7}, {3, 4, 7, 8}, {5, 6, 7, 8}",
        ("tests/data/sources/test_images.py",),
    ),
    Mutation(
        "crc-is-not-compared",
        "if zlib.crc32(label.tobytes(), zlib.crc32(content)) != opened.crc32_N[index - opened.first]:",
        "if index in self.damaged:",
        ("tests/data/read/test_stream.py",),
    ),
    Mutation(
        "one-damaged-image-fewer-accepted",
        "if len(replaced) > max_damaged:",
        "if len(replaced) >= max_damaged:",
        ("tests/data/prepare/test_damage.py",),
    ),
    Mutation(
        "a-held-out-image-stands-in",
        "if sound in self.damaged or not self._part.has(sound):",
        "if sound in self.damaged:",
        ("tests/data/order/test_holdout.py",),
    ),
    Mutation(
        "lanes-share-their-blocks",
        "dealt_B = (window_B * window + inner_B // block) * lanes + lane_B",
        "dealt_B = lane_B * self._of_lane + window_B * window + inner_B // block - lane_B",
        ("tests/data/order/test_order.py",),
    ),
    Mutation(
        "a-share-takes-a-run-of-neighbours",
        "start_G[:, None] + torch.arange(per_share) * shares",
        "start_G[:, None] + share * (per_share - 1) + torch.arange(per_share)",
        ("tests/model/test_masks.py",),
    ),
    Mutation(
        "epochs-of-blocks-are-alike",
        'keyed_permutation(self._seed, "blocks", epoch_B, dealt_B,',
        'keyed_permutation(self._seed, "blocks", epoch_B * 0, dealt_B,',
        ("tests/data/order/test_order.py",),
    ),
    Mutation(
        "a-changed-file-is-read",
        "if (found.size, found.tag) != (tar.bytes, tar.tag):",
        "if found.size != tar.bytes:",
        ("tests/data/tars/test_images.py", "-k", "changed"),
    ),
    Mutation(
        "what-is-kept-is-not-looked-for-again",
        "if (kept := _read(path, start, stop)) is not None:  # another process was faster",
        "if (kept := None) is not None:",
        ("tests/data/storage/test_cache.py", "-k", "at_once"),
    ),
    Mutation(
        "rows-outside-the-file-count",
        "is_inside = (rows.offset_N >= 0).all() and (end_N <= size).all()",
        "is_inside = True",
        ("tests/data/tars/test_indexing.py", "-k", "never_trusted"),
    ),
    Mutation(
        "celeba-tests-on-the-validation-images",
        '_SPLITS = {"train": "0", "val": "1", "test": "2"}',
        '_SPLITS = {"train": "0", "val": "2", "test": "1"}',
        ("tests/data/sources/test_celeba.py",),
    ),
    Mutation(
        "sidecar-of-another-recipe-counts",
        "if sidecar is None or sidecar.recipe() != recipe or sidecar.shard.images != images:",
        "if sidecar is None or sidecar.shard.images != images:",
        ("tests/trainer/test_encoding.py",),
    ),
    Mutation(
        "folder-without-val",
        '"val": ("val", "valid", "validation", "dev"),',
        '"val": ("valid", "validation", "dev"),',
        ("tests/data/sources/test_folder.py",),
    ),
    Mutation(
        "pipe-is-a-folder",
        're.match(r"(pipe):|([a-z][a-z0-9+.-]*)://"',
        're.match(r"(no pipe):|([a-z][a-z0-9+.-]*)://"',
        ("tests/launch/test_faults.py", "-k", "no_folder"),
    ),
    # trainer/
    Mutation(
        "ranks-read-the-same-images",
        "local_positions(first, size, groups, micro * world.size + world.rank, accumulation * world.size)",
        "local_positions(first, size, groups, micro * world.size, accumulation * world.size)",
        ("tests/launch/test_ranks.py", "-k", "srun and accelerate"),
    ),
    Mutation(
        "checkpoint-is-named-before-its-manifest",
        '    write_aside(aside / "manifest.json", json.dumps(manifest, indent=1).encode())\n'
        "    if final.exists():  # the same images again, after a resume from an earlier one\n"
        "        remove(final)\n"
        "    aside.rename(final)\n",
        "    if final.exists():\n"
        "        remove(final)\n"
        "    aside.rename(final)\n"
        '    write_aside(final / "manifest.json", json.dumps(manifest, indent=1).encode())\n',
        ("tests/launch/test_faults.py", "-k", "manifest"),
    ),
    Mutation(
        "checkpoint-is-verified-by-size-alone",
        "if size != expected.bytes or _fingerprint(path / name) != expected.model_dump():",
        "if size != expected.bytes:",
        ("tests/biglearn_vae/test_checkpoint.py",),
    ),
    Mutation(
        "the-worst-checkpoints-are-kept",
        "first(sorted(scores, key=scores.get)[::-1], config.keep_best)",
        "first(sorted(scores, key=scores.get), config.keep_best)",
        ("tests/biglearn_vae/test_checkpoint.py",),
    ),
    Mutation(
        "half-life-in-steps",
        "return 0.5 ** (batch_size / halflife) if halflife else 0.0",
        "return 0.5 ** (1 / halflife) if halflife else 0.0",
        ("tests/trainer/test_schedule.py",),
    ),
    Mutation(
        "accumulated-gradients-are-a-sum",
        "                (loss / len(batches)).backward()\n",
        "                loss.backward()\n",
        ("tests/trainer/engines/test_engine.py", "-k", "accumulation"),
    ),
    Mutation(
        "deepspeed-does-not-clip",
        '"gradient_clipping": max_grad_norm or 0.0,',
        '"gradient_clipping": 0.0,',
        ("tests/trainer/engines/test_engine.py", "-k", "clipped"),
    ),
    Mutation(
        "cosine-counts-the-warm-up",
        "progress = min(1.0, max(0, images - start) / max(1, total_images - start))",
        "progress = min(1.0, images / max(1, total_images))",
        ("tests/trainer/test_schedule.py",),
    ),
    Mutation(
        "muon-without-momentum",
        "torch._foreach_lerp_(momenta, gradients, 1 - self._momentum)",
        "torch._foreach_lerp_(momenta, gradients, 1.0)",
        ("tests/trainer/engines/test_optimizers.py",),
    ),
    Mutation(
        "muon-takes-q-k-and-v-for-one-matrix",
        "name: (3, rows // 3, columns) if",
        "name: (1, rows, columns) if",
        ("tests/trainer/test_golden_losses.py",),
    ),
    Mutation(
        "connected-sets-are-not",
        "connected_BL = torch.where(shape_rank_BL < n_S_B[:, None], shape_rank_BL, patches + rank_BL)",
        "connected_BL = rank_BL",
        ("tests/model/test_masks.py",),
    ),
    Mutation(
        "zero-3-drops-the-weights-it-loads",
        "deepspeed.zero.GatheredParameters([p], modifier_rank=0, enabled=self.stage == 3)",
        "deepspeed.zero.GatheredParameters([p], modifier_rank=None, enabled=self.stage == 3)",
        ("tests/trainer/engines/test_engine.py", "-k", "full_state"),
    ),
    Mutation(
        "a-gradient-that-is-not-finite-is-applied",
        "skipped = is_invalid(*means.values())",
        'skipped = is_invalid(means["loss"])',
        ("tests/trainer/engines/test_engine.py", "-k", "not_finite"),
    ),
    Mutation(
        "skipped-steps-count-though-not-in-a-row",
        "                self.last_skipped.clear()\n                require_finite(line)\n",
        "                require_finite(line)\n",
        ("tests/trainer/test_metrics.py",),
    ),
    Mutation(
        "resume-with-another-objective",
        'kept = ("method", "seed", "model.", "objective.", "optimizer.name")',
        'kept = ("method", "seed", "model.", "optimizer.name")',
        ("tests/trainer/test_resume.py",),
    ),
    Mutation(
        "test-images-choose-the-checkpoint",
        'return HOLDOUT if self.holdout else "test"',
        'return "test"',
        ("tests/trainer/test_holdout.py",),
    ),
    Mutation(
        "unknown-keys-are-ignored",
        'class Section(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):',
        "class Section(BaseModel, frozen=True, allow_inf_nan=False):",
        ("tests/trainer/test_config.py",),
    ),
    Mutation(
        "device-seconds-of-one-rank",
        'self._numbers["device_seconds", ()] += seconds * line["world_size"]',
        'self._numbers["device_seconds", ()] += seconds',
        ("tests/monitoring/test_exposition.py",),
    ),
    Mutation(
        "in-painting-scored-on-the-whole-image",
        "return (value * missing_BHW).sum((-1, -2)) / size_B",
        "return value.mean((-1, -2))",
        ("tests/evaluation/test_assessment.py", "-k", "missing_part"),
    ),
    Mutation(
        "nearest-neighbour-sees-what-is-missing",
        "distance_BN = known_BP @ other_NP.square().T - 2 * x_BP @ other_NP.T",
        "distance_BN = other_NP.square().sum(1) - 2 * x_BP @ other_NP.T",
        ("tests/evaluation/test_assessment.py", "-k", "nearest"),
    ),
    Mutation(
        "replayed-steps-keep-their-noise",
        "            buffer.x_BLD.copy_(batch.x_BLD)\n            buffer.index_B.copy_(batch.index_B)\n",
        "            buffer.x_BLD.copy_(batch.x_BLD)\n",
        ("tests/trainer/engines/test_cuda_graphs.py",),
    ),
    Mutation(
        "replays-leave-the-optimizer-without-gradients",
        "        gradients.show()\n",
        "",
        ("tests/trainer/engines/test_cuda_graphs.py",),
    ),
    Mutation(
        "in-painting-is-measured-on-all-images",
        "count = min(images, evaluator.most_images or images)",
        "count = images",
        ("tests/trainer/test_evaluation.py",),
    ),
    Mutation(
        "one-draw-for-the-mean-of-all",
        "filled_KBHWC.mean(0, keepdim=True)",
        "filled_KBHWC[:1]",
        ("tests/evaluation/test_assessment.py", "-k", "standard_masks"),
    ),
    Mutation(
        "density-of-less-than-the-variance-of-the-model",
        "gaussian.with_noise(max(gaussian.noise, vae.variance * gaussian.channels / 3))",
        "gaussian",
        ("tests/evaluation/test_assessment.py", "-k", "variance_of_the_model"),
    ),
    # reproduction/
    Mutation(
        "damaged-cells-count",
        "cell = Cell.model_validate(values) if whole else None",
        "cell = Cell.model_validate(values)",
        ("tests/reproduction/test_cells.py", "-k", "damaged"),
    ),
    Mutation(
        "cells-of-older-recipes-count",
        "if cell.recipe_version != RECIPE_VERSION:",
        "if cell.recipe_version < 0:",
        ("tests/reproduction/test_cells.py", "-k", "damaged"),
    ),
    Mutation(
        "runs-of-another-recipe-are-measured",
        'if found["recipe"] != recipe:',
        "if not found:",
        ("tests/reproduction/test_making.py", "-k", "another_recipe"),
    ),
    Mutation(
        "equal-time-is-that-of-the-slower",
        'min(curve[-1]["seconds"] for curve in curves)',
        'max(curve[-1]["seconds"] for curve in curves)',
        ("tests/reproduction/test_claims.py", "-k", "modes"),
    ),
    Mutation(
        "a-verdict-is-that-of-any-seed",
        "return HOLDS if all(holds) else",
        "return HOLDS if any(holds) else",
        ("tests/reproduction/test_claims.py", "-k", "seed_by_seed"),
    ),
    # launch/
    Mutation(
        "data-wait-as-a-share-of-the-steps",
        'phase=~"data|step"}[1m])',
        'phase="step"}[1m])',
        ("tests/monitoring/test_prometheus.py", "-k", "unit"),
    ),
    Mutation(
        "options-of-sbatch-without-quotes",
        'lines += [f"#SBATCH --{key}={shlex.quote(value)}" for key, value in options.items()]',
        'lines += [f"#SBATCH --{key}={value}" for key, value in options.items()]',
        ("tests/slurm/test_slurm.py", "-k", "any_name"),
    ),
    Mutation(
        "one-restart-fewer",
        '[ "$fruitless" -le "$restarts" ] && return',
        '[ "$fruitless" -lt "$restarts" ] && return',
        ("tests/slurm/test_slurm.py", "-k", "never_gets_anywhere"),
    ),
    Mutation(
        "a-stopped-run-ends-as-if-done",
        "        )\n        return REQUEUE\n",
        "        )\n        return 0\n",
        ("tests/launch/test_faults.py", "-k", "SIGTERM and accelerate"),
    ),
    Mutation(
        "an-interrupt-ends-like-a-lost-rank",
        "_leave(130)",
        "_leave(LOST)",
        ("tests/launch/test_prepare.py", "-k", "interrupt"),
    ),
    Mutation(
        "patch-ae-starts-with-another-decoder",
        "transpose.weight.copy_(layer.weight if turned else layer.weight.transpose(0, 1))",
        "transpose.weight.copy_(-layer.weight if turned else layer.weight.transpose(0, 1))",
        ("tests/model/patch_autoencoder/test_patch_autoencoder.py",),
    ),
    Mutation(
        "zero-3-takes-the-first-piece-everywhere",
        "start = dist.get_rank() * piece",
        "start = 0 * piece",
        ("tests/trainer/engines/test_pieces.py",),
    ),
    Mutation(
        "a-jump-of-the-rates-is-not-said",
        "if any(abs(old - new) > 0.01 * max(old, new)",
        "if any(abs(old - new) > 1.01 * max(old, new)",
        ("tests/trainer/test_before.py",),
    ),
    Mutation(
        "images-are-mirrored-in-every-epoch-alike",
        'uniform(seed, "views", position_B, 1)',
        'uniform(seed, "views", position_B * 0, 1)',
        ("tests/data/read/test_views.py",),
    ),
    Mutation(
        "codes-of-mirrored-images-are-those-of-the-images",
        "x_BLD = mirrored(batch.x_BLD, self._data.patch_size)",
        "x_BLD = batch.x_BLD",
        ("tests/trainer/test_encoding.py",),
    ),
    Mutation(
        "codes-replace-the-images-they-are-of",
        "if kinds - {codes}:",
        "if False:",
        ("tests/trainer/test_encoding.py", "-k", "never_lost"),
    ),
    Mutation(
        "a-request-gets-the-seed-of-another-one",
        '"seed": [job.seed for job in jobs]',
        '"seed": [jobs[0].seed for _ in jobs]',
        ("tests/serving/test_service.py", "-k", "batched_with"),
    ),
    Mutation(
        "other-ways-of-filling-see-another-image",
        "torch.stack([fill(job.given[0], 0)[0, 0] for fill in fillers]) for job in jobs",
        "torch.stack([fill(job.given[0], 1)[0, 0] for fill in fillers]) for job in jobs",
        ("tests/serving/test_service.py", "-k", "other_ways"),
    ),
    Mutation(
        "the-page-sends-what-was-erased",
        'this.set(pixel, "erase")',
        "this.now.known[pixel] = 0",
        ("tests/launch/test_page.py", "-k", "not_sent"),
    ),
    Mutation(
        "other-sites-may-ask-the-page",
        "origin is not None and urlsplit(origin).netloc != host",
        "origin is None",
        ("tests/launch/test_page.py", "-k", "elsewhere"),
    ),
    Mutation(
        "the-page-counts-the-error-of-what-is-known",
        "if (of.known[pixel]) continue;",
        "if (of.known[pixel]) count += 3;",
        ("tests/launch/test_page.py", "-k", "keep_what_is_known"),
    ),
    Mutation(
        "the-page-shows-notes-of-the-last-question-alone",
        "new Set([...said, ...inpainted.notes])",
        "new Set(inpainted.notes)",
        ("tests/launch/test_page.py", "-k", "with_a_reason"),
    ),
    Mutation(
        "jobs-of-other-numbers-go-together",
        "return self.work == other.work and (self.number == other.number or not self.given)",
        "return self.work == other.work",
        ("tests/serving/test_batches.py",),
    ),
    Mutation(
        "a-job-that-fails-fails-its-batch",
        "if len(batch) == 1:\n                batch[0][1].set_exception(error)\n                return",
        "if len(batch):\n                [each[1].set_exception(error) for each in batch]\n                return",
        ("tests/serving/test_batches.py", "-k", "fails_alone"),
    ),
    Mutation(
        "more-images-wait-than-may",
        "self._count() + job.images > self._most_waiting",
        "self._count() > self._most_waiting",
        ("tests/serving/test_batches.py", "tests/serving/test_refusals.py"),
    ),
    Mutation(
        "large-requests-are-read-whole",
        "                    if len(content) > most:\n",
        "                    if len(content) > most**2:\n",
        ("tests/serving/test_refusals.py", "-k", "large_request"),
    ),
    Mutation(
        "any-token-will-do",
        "if not hmac.compare_digest(given.encode(), self._token.encode()):",
        "if not given:",
        ("tests/serving/test_refusals.py", "-k", "token"),
    ),
    Mutation(
        "a-fault-of-the-service-is-an-answer",
        "status, came = 500, None",
        "status, came = 200, None",
        ("tests/serving/test_refusals.py", "-k", "fault_of_ours"),
    ),
    Mutation(
        "the-first-fault-is-no-increase",
        "_COUNTED_FROM_0 = (200, 429, 500)",
        "_COUNTED_FROM_0 = (200, 429)",
        ("tests/serving/test_refusals.py", "-k", "fault_of_ours"),
    ),
    Mutation(
        "mistakes-of-clients-are-overload",
        'job="biglearn-service", status="429"}[5m])',
        'job="biglearn-service", status=~"4.."}[5m])',
        ("tests/monitoring/test_prometheus.py", "-k", "unit"),
    ),
    Mutation(
        "a-service-that-was-started-again-has-grown",
        'and time() - process_start_time_seconds{job="biglearn-service"} > 7 * 3600',
        'and time() - process_start_time_seconds{job="biglearn-service"} > 0',
        ("tests/monitoring/test_prometheus.py", "-k", "unit"),
    ),
    Mutation(
        "a-card-that-was-edited-is-replaced",
        "not (path.name in written and _sha256(path) == written[path.name])",
        "path.name not in written",
        ("tests/biglearn_vae/hub/test_repository.py", "-k", "nothing_of_a_person"),
    ),
    Mutation(
        "figures-of-another-checkpoint",
        'if report["images"] == images and of_these:',
        "if of_these:",
        ("tests/launch/test_export.py", "-k", "figures_of_a_card"),
    ),
    Mutation(
        "all-files-of-a-repository-are-fetched",
        "snapshot_download(repository, allow_patterns=[*names])",
        "snapshot_download(repository)",
        ("tests/biglearn_vae/hub/test_repository.py", "-k", "what_could_run"),
    ),
    Mutation(
        "onnx-decodes-without-what-is-known",
        "return (given.complete(*vae.decode_portion(given, z_BZ)),)",
        "return vae.decode_portion(given, z_BZ)",
        ("tests/biglearn_vae/hub/test_onnx_graphs.py", "-k", "any_batch"),
    ),
    Mutation(
        "tensorboard-shows-what-was-made-again-twice",
        "purge_step=run.step + 1",
        "purge_step=None",
        ("tests/trainer/test_trackers.py", "-k", "tensorboard_has"),
    ),
    Mutation(
        "mlflow-begins-a-new-run-at-each-start",
        "if found and not tracker.run_id:",
        "if not found and tracker.run_id:",
        ("tests/trainer/test_trackers.py", "-k", "mlflow_has"),
    ),
    Mutation(
        "lines-wait-without-end",
        "= deque(maxlen=_MOST_WAITING)",
        "= deque()",
        ("tests/trainer/test_trackers.py", "-k", "hangs"),
    ),
    Mutation(
        "the-last-lines-do-not-reach-a-tracker",
        "is_last = self._ended.wait(_PAUSE_S)\n",
        "is_last = self._ended.wait(_PAUSE_S)\n                    if is_last:\n                        break\n",
        ("tests/trainer/test_trackers.py", "-k", "breaks_off"),
    ),
)
