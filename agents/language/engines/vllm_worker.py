"""What runs inside vLLM's workers, as methods of theirs (vLLM's `worker_extension_cls`)."""

from typing import Any


class WeightsExtension:
    """Loads new weights over the old ones."""

    model_runner: Any
    """The worker's own."""

    def take_weights(self, folder: str) -> None:
        """Loads the weights of a folder in Hugging Face format.

        On CPUs vLLM multiplies with copies of the weights that are laid out for its kernels. Reloading renews those of layers
        that have weights in the folder; a head that is tied to the embedding has none, so its copy is renewed here.
        """
        self.model_runner.reload_weights(weights_path=folder)
        for layer in self.model_runner.get_model().modules():
            weight = getattr(layer, "weight", None)
            if hasattr(layer, "cpu_linear") and weight is not None and weight.numel():
                from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

                dispatch_cpu_unquantized_gemm(layer, remove_weight=False)
