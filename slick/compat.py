"""Every private or undocumented API of other libraries that slick uses.

Each entry names the version it was checked with and what could replace it; `tests/unit/test_compat.py` fails when an
installed version differs. Heavy libraries are imported inside functions.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

# --- transformers -----------------------------------------------------------------------------------------------------


def attention_implementation(config: Any) -> str | None:
    """Name of the attention kernel of a loaded model, such as `sdpa`; None if its code does not name one.

    `PretrainedConfig._attn_implementation`, checked with transformers 5.23.0. No public replacement; the
    documented `set_attn_implementation` only writes it.
    """
    name: str | None = getattr(config.get_text_config(), "_attn_implementation", None)
    return name


def is_flash_kernel(name: str) -> bool:
    """Whether transformers treats an attention kernel as one of FlashAttention, which takes boundaries of packed rows.

    The rule of `transformers.utils.generic.is_flash_attention_requested`, checked with transformers 5.23.0: the name
    contains `flash`. Replacement: that function, which is not documented either.
    """
    return "flash" in name


def attention_configs(model: "nn.Module") -> list[Any]:
    """The configurations, each once, from which a model's layers read their attention kernel.

    `PretrainedConfig._attn_implementation_internal`, checked with transformers 5.23.0; see `attention_override`.
    """
    configs = [getattr(module, "config", None) for module in model.modules()]
    has_kernel = [config for config in configs if hasattr(config, "_attn_implementation_internal")]
    return list({id(config): config for config in has_kernel}.values())


@contextmanager
def attention_override(configs: Sequence[Any], name: str) -> Iterator[None]:
    """While active, layers with these configurations use the attention function registered as `name`.

    `PretrainedConfig._attn_implementation_internal`, checked with transformers 5.23.0. Replacement:
    `PreTrainedModel.set_attn_implementation`, which today visits all submodules on each call.
    """
    before = [config._attn_implementation_internal for config in configs]
    try:
        for config in configs:
            config._attn_implementation_internal = name
        yield
    finally:
        for config, value in zip(configs, before, strict=True):
            config._attn_implementation_internal = value


def has_recurrent_state(model: "nn.Module") -> bool:
    """Whether a model keeps a recurrent state instead of keys and values, as Mamba does.

    `PreTrainedModel._is_stateful`, checked with transformers 5.23.0. No public replacement; `find_logit_mismatch`
    also detects such models, by their logits.
    """
    return bool(getattr(model, "_is_stateful", False))


def uses_attention_interface(model: "nn.Module") -> bool:
    """Whether the layers of a model call the attention function that its configuration names.

    `PreTrainedModel._supports_attention_backend`, checked with transformers 5.23.0. No public replacement.
    """
    return bool(getattr(model, "_supports_attention_backend", False))


def tied_weight_names(model: "nn.Module") -> Sequence[str]:
    """Names of the parameters that a model class ties to its input embeddings.

    `PreTrainedModel._tied_weights_keys`, checked with transformers 5.23.0. No public replacement.
    """
    return list(getattr(model, "_tied_weights_keys", None) or ())


@contextmanager
def sharded_loading(deepspeed_settings: dict[str, object]) -> Iterator[None]:
    """While active, `from_pretrained` partitions weights over the workers while it reads them (ZeRO stage 3).

    Checked with transformers 5.23. Replacement: none documented; `HfDeepSpeedConfig` is, but not how to unset it.
    """
    from transformers.integrations import HfDeepSpeedConfig
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    keep_alive = HfDeepSpeedConfig(deepspeed_settings)  # transformers holds a weak reference
    try:
        yield
    finally:
        del keep_alive
        unset_hf_deepspeed_config()


@contextmanager
def without_quantization(model: "nn.Module") -> Iterator[None]:
    """While active, `save_pretrained` writes the weights that it is given, and a config.json without quantization.

    `PreTrainedModel.hf_quantizer` and `config.quantization_config`, checked with transformers 5.23.0. Replacement:
    `PreTrainedModel.dequantize`, which changes the model itself.
    """
    quantized: Any = model
    quantizer = getattr(quantized, "hf_quantizer", None)
    if quantizer is None:
        yield
        return
    settings = quantized.config.quantization_config
    try:
        quantized.hf_quantizer = None
        del quantized.config.quantization_config
        yield
    finally:
        quantized.hf_quantizer, quantized.config.quantization_config = quantizer, settings


# --- torch ------------------------------------------------------------------------------------------------------------


def onednn_pack(weight: "Tensor") -> "Tensor":
    """A weight in the memory layout that oneDNN multiplies fastest.

    `torch.ops.mkldnn._reorder_linear_weight`, which Inductor emits; checked with torch 2.13.0. Replacement:
    `torch.compile`, which packs weights itself, but recompiles for each batch shape.

    Raises:
        AttributeError: this torch lacks the operator.
    """
    import torch

    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return packed


def onednn_linear(x: "Tensor", weight: "Tensor", bias: "Tensor | None") -> "Tensor":
    """`nn.functional.linear` by oneDNN, with a plain or a packed weight.

    `torch.ops.mkldnn._linear_pointwise`, which Inductor emits; checked with torch 2.13.0. Replacement: see
    `onednn_pack`.

    Raises:
        AttributeError: this torch lacks the operator.
    """
    import torch

    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def has_compiled_modules(model: "nn.Module") -> bool:
    """Whether `nn.Module.compile` was called for a module of the model.

    `nn.Module._compiled_call_impl`, checked with torch 2.13.0. No public replacement.
    """
    return any(getattr(module, "_compiled_call_impl", None) is not None for module in model.modules())


def has_native_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices natively.

    `torch.cpu._is_avx512_bf16_supported` and `_is_amx_tile_supported`, checked with torch 2.13.0. Replacement:
    `torch.cpu.get_capabilities`, once it is documented.
    """
    import torch

    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


# --- vLLM -------------------------------------------------------------------------------------------------------------


def vllm_attention_backend(llm: Any) -> str | None:
    """The attention backend in the settings of a `vllm.LLM`; None if vLLM chose it itself, which it does not report.

    `LLM.llm_engine.vllm_config.attention_config.backend`, checked with vLLM 0.32.0. No public replacement.
    """
    settings = getattr(getattr(getattr(llm, "llm_engine", None), "vllm_config", None), "attention_config", None)
    backend = getattr(settings, "backend", None)
    return str(getattr(backend, "name", backend)) if backend else None


# --- Ray core ---------------------------------------------------------------------------------------------------------


def ray_bootstrap_address(address: str) -> str:
    """HOST:PORT that `ray.init` connects to for an address such as `auto`; empty if there is no cluster.

    Checked with Ray 2.60. Replacement: none public.

    Raises:
        ConnectionError, OSError, ValueError: the cluster is not found, or the address cannot be read.
    """
    from ray._private.services import canonicalize_bootstrap_address

    return canonicalize_bootstrap_address(address) or ""


def set_ray_job_message(job_id: str, message: str) -> bool:
    """Set the status message of a submitted job in its record, which Ray overwrites when the job ends.

    Checked with Ray 2.60. Replacement: none; the job API reads the message, but cannot set it.

    Args:
        job_id: submission id.
        message: one line.

    Returns:
        Whether the record exists.

    Raises:
        TypeError, ValueError: the record is not JSON.
    """
    from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

    key = f"_ray_internal_job_info_{job_id}"
    record = _internal_kv_get(key, namespace="job")
    if not record:
        return False
    _internal_kv_put(key, json.dumps(json.loads(record) | {"message": message}), overwrite=True, namespace="job")
    return True


def reload_ray_authentication() -> None:
    """Let Ray read RAY_AUTH_MODE and the token again, which it caches for the process.

    Checked with Ray 2.60. Replacement: none public.
    """
    from ray import _raylet

    raylet: Any = _raylet
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def ray_multi_node_disabled() -> Iterator[None]:
    """While active, RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER is 0 in this process, although Ray is already imported.

    Checked with Ray 2.60, which reads the variable at import. Replacement: set the variable before the import of Ray.
    """
    from ray._private import ray_constants

    previous = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = previous


def local_cluster_processes() -> dict[str, int]:
    """Name -> process id of the processes that the cluster of this process needs; empty until they have started.

    Checked with Ray 2.60. Replacement: none public.
    """
    from ray._private import worker

    node = worker._global_node
    processes = node.all_processes if node else {}
    return {name: processes[name][0].process.pid for name in ("raylet", "gcs_server") if processes.get(name)}


def kill_local_cluster() -> None:
    """Kill the processes of the cluster that this process started, without waiting for those that have died.

    Checked with Ray 2.60. Replacement: `ray.shutdown`, which waits for answers of a dead node.
    """
    from ray._private import worker

    worker._global_node.kill_all_processes(check_alive=False, allow_graceful=False)


def dataset_tables(dataset: Any) -> Iterator[Any]:
    """The blocks of a Ray Data dataset, in order of completion, as soon as they are complete.

    `iter_batches` yields a block only after the next one, or with `prefetch_batches=0` leaves a thread behind.
    Checked with Ray 2.60. Replacement: `iter_batches(prefetch_batches=0)`, once it ends its thread.
    """
    import ray

    for bundle in dataset.iter_internal_ref_bundles():
        for reference in bundle.block_refs:
            yield ray.get(reference)


# --- Ray Train --------------------------------------------------------------------------------------------------------


CHECKPOINT_SNAPSHOT_FILE = "checkpoint_manager_snapshot.json"
"""Ray Train's list of the checkpoints in the folder of a run, read when the run is started again. Checked with Ray
2.60."""


def snapshot_checkpoint_names(snapshot: Mapping[str, Any]) -> set[str]:
    """Folder names of the checkpoints in the content of `CHECKPOINT_SNAPSHOT_FILE`.

    Checked with Ray 2.60. Replacement: none; Ray documents neither the file nor a way to resume without it.

    Raises:
        KeyError, TypeError: the content has another form.
    """
    results = [*snapshot["checkpoint_results"], *snapshot["pending_training_results"]]
    results += [snapshot["latest_checkpoint_result"]] if snapshot["latest_checkpoint_result"] else []
    return {result["checkpoint_dir_name"] for result in results}


def ray_train_storage() -> Any:
    """Storage of the current Ray Train run, in a worker: file system, checkpoint paths, upload.

    Checked with Ray 2.60 (a developer API). Replacement: `ray.train.report` without `checkpoint_upload_fn`, once it
    removes a checkpoint whose upload failed.
    """
    import ray.train

    return ray.train.get_context().get_storage()


def torch_backend() -> tuple[Any, Callable[[], None]]:
    """Ray Train's backend class that sets up a torch process group, and its function that sets RANK and others.

    Checked with Ray 2.60. Replacement: an argument of `TorchConfig` for a rendezvous store.
    """
    from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend

    return _TorchBackend, _set_torch_distributed_env_vars


def torch_trainer(make_failure_policy: Callable[[Any], Any] | None = None) -> Any:
    """A `TorchTrainer` class without the actor that splits Ray Data datasets, and with another failure policy.

    Checked with Ray 2.60. Replacement: arguments of `TorchTrainer` for callbacks and `FailurePolicy`.

    Args:
        make_failure_policy: the policy for a `FailureConfig`, see `failure_policy`; None: Ray's own.
    """
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    class LightweightTorchTrainer(TorchTrainer):  # type: ignore[misc]
        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()
            return [
                _placement_group_cleaner() if isinstance(callback, PlacementGroupCleanerCallback) else callback
                for callback in callbacks
                if not isinstance(callback, DatasetsCallback)
            ]

        def _initialize_and_run_controller(self, **arguments: Any) -> Any:
            if make_failure_policy is not None:
                arguments["failure_policy"] = make_failure_policy(self.run_config.failure_config)
            return super()._initialize_and_run_controller(**arguments)

    return LightweightTorchTrainer


def _placement_group_cleaner() -> Any:
    """Ray Train's callback that frees the resources of a run whose controller was killed, with its cluster's address.

    The callback starts an actor, which polls the state API without an address: where several clusters run on one
    machine that raises an error in the actor's thread, and the resources are never freed. Checked with Ray 2.60.
    Replacement: none needed once Ray's actor names its own cluster.
    """
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    def set_ray_address(_: Any, address: str) -> None:
        os.environ["RAY_ADDRESS"] = address  # read by the state API

    class AddressedCleanerCallback(PlacementGroupCleanerCallback):  # type: ignore[misc]
        def after_controller_start(self, train_run_context: Any) -> None:
            import ray

            super().after_controller_start(train_run_context)
            if self._cleaner is not None:  # its first poll comes a second after its start
                self._cleaner.__ray_call__.remote(set_ray_address, ray.get_runtime_context().gcs_address)

    return AddressedCleanerCallback()


def failure_policy(config: Any, is_fatal: Callable[[Exception], bool], has_progressed: Callable[[], bool]) -> Any:
    """Ray Train's retry policy, which also ends the run on fatal errors and resets its failure count on progress.

    Checked with Ray 2.60. Replacement: an option of `FailureConfig` that counts failures since the last checkpoint.

    Args:
        config: a `FailureConfig`.
        is_fatal: whether a retry after this error would fail for the same reason.
        has_progressed: whether the run has progressed since the last call; called once per failure.
    """
    from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
    from ray.train.v2._internal.execution.failure_handling.failure_policy import FailureDecision

    class ProgressFailurePolicy(DefaultFailurePolicy):  # type: ignore[misc]
        def make_decision(self, training_failed_error: Exception) -> Any:
            if is_fatal(training_failed_error):
                return FailureDecision.RAISE
            if has_progressed():
                self._worker_group_failures = 0
            return super().make_decision(training_failed_error)

    return ProgressFailurePolicy(config)


def nested_errors(error: BaseException) -> list[BaseException]:
    """The errors that an error of Ray Train or Ray Tune wraps: those of workers and the controller, and its cause.

    Checked with Ray 2.60. Replacement: `__cause__`, once Ray sets it on every error.
    """
    nested = [getattr(error, name, None) for name in ("_base_exc", "cause", "controller_failure", "__cause__")]
    nested += getattr(error, "worker_failures", {}).values()
    return [inner for inner in nested if isinstance(inner, BaseException)]


def first_worker_error(error: BaseException) -> BaseException:
    """The error that the first failed worker raised, or the health check that it failed, without the wrappers of Ray.

    Checked with Ray 2.60. Replacement: see `nested_errors`.
    """
    cause: Any = getattr(error, "cause", None) or error
    worker_error = next(iter(getattr(cause, "worker_failures", {}).values()), cause)
    worker_error = getattr(worker_error, "_base_exc", worker_error)
    inner: BaseException = getattr(worker_error, "health_check_failure", worker_error)
    return inner


# --- Ray Tune ---------------------------------------------------------------------------------------------------------


def hide_aws_keys_from_trials() -> None:
    """Keep the driver's AWS keys out of the runtime environment of trials, which Ray writes into its logs.

    Trials do not need them: a process has the environment of its node or of its job.

    Checked with Ray 2.60. Replacement: a setting of Ray Tune for the environment variables of trials.
    """
    from ray.tune.execution import class_cache

    names = class_cache.ENV_VARS_TO_PROPAGATE
    class_cache.ENV_VARS_TO_PROPAGATE = {name for name in names if not name.startswith("AWS_")}


def reset_trial_failures(trial: Any) -> None:
    """Set the number of failures of a trial to 0, so that its retry count starts again.

    Checked with Ray 2.60. Replacement: an option of `ray.tune.FailureConfig`.
    """
    trial.run_metadata.num_failures = 0


def trial_error(trial: Any) -> BaseException:
    """The error that ended a trial.

    Checked with Ray 2.60. Replacement: an argument of `ray.tune.Callback.on_trial_error`.
    """
    error: BaseException = trial.get_pickled_error() or trial.get_error()
    return error


# --- DeepSpeed --------------------------------------------------------------------------------------------------------


def skip_shm_build() -> None:
    """Keep DeepSpeed from compiling its shared-memory collectives when the process group starts on a CPU.

    The build takes half a minute and fails without a C++ compiler; gloo does the same work.

    Checked with DeepSpeed 0.19. Replacement: none; DS_BUILD_SHM_COMM=0 and DS_ACCELERATOR=cpu do not prevent it.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def base_optimizer(engine: Any) -> Any:
    """The torch optimizer inside a DeepSpeed engine.

    Checked with DeepSpeed 0.19. Replacement: `engine.optimizer`, which under ZeRO is a wrapper without its state.
    """
    return engine.basic_optimizer


def is_partitioned(parameter: Any) -> bool:
    """Whether ZeRO stage 3 partitions a parameter over the workers.

    Checked with DeepSpeed 0.19. Replacement: none documented.
    """
    return hasattr(parameter, "ds_id")


def full_shape(parameter: Any) -> tuple[int, ...]:
    """The shape of a parameter before ZeRO partitioned it.

    Checked with DeepSpeed 0.19. Replacement: none documented.
    """
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def local_values(parameter: Any) -> Any:
    """The values of a parameter on this worker: its partition under ZeRO stage 3, otherwise all of them.

    `ds_tensor`, checked with DeepSpeed 0.19. Replacement: `deepspeed.zero.GatheredParameters`, which copies all values
    to every worker.
    """
    return getattr(parameter, "ds_tensor", parameter)


def partition_size(parameter: Any) -> int:
    """The number of elements of a parameter that each worker holds under ZeRO stage 3, padding included.

    Checked with DeepSpeed 0.19. Replacement: none documented.
    """
    return int(parameter.ds_tensor.numel())


# --- bitsandbytes -----------------------------------------------------------------------------------------------------


def keep_4bit_layout(layers: Iterable[Any]) -> None:
    """Keep layers with 4-bit weights from changing the memory layout of their weights when they are evaluated on a CPU.

    Afterwards `matmul_4bit` has no gradient, so a training that evaluates would silently stop to learn in the layers
    before, and `dequantize_4bit` returns other numbers.

    `Linear4bit.support_avx512bf16_for_cpu`, checked with bitsandbytes 0.50.2. Replacement: none needed once the layout
    is changed back in training mode.
    """
    for layer in layers:
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


# --- liger-kernel -----------------------------------------------------------------------------------------------------


def apply_liger_kernels(model: Any) -> bool:
    """Replace a loaded model's norms, rotary positions and feed-forward blocks by Liger's kernels, where it has them.

    `liger_kernel.transformers.monkey_patch`, checked with liger-kernel 0.8.5. Replacement: the documented
    `AutoLigerKernelForCausalLM`, which loads the model itself and does nothing for an unknown architecture.

    Returns:
        False if Liger does not know the architecture; the model is then unchanged.
    """
    from liger_kernel.transformers import monkey_patch

    if model.config.model_type not in monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN:
        return False
    monkey_patch._apply_liger_kernel_to_instance(model, cross_entropy=False, fused_linear_cross_entropy=False)
    return True


# --- peft -------------------------------------------------------------------------------------------------------------


@contextmanager
def disabled_adapters(layers: Iterable[Any]) -> Iterator[None]:
    """While active, LoRA layers compute their base layer only.

    Checked with peft 0.21. Replacement: `enable_adapters`, which also changes `requires_grad` of all parameters.
    """
    layers = list(layers)
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False
