"""Optional tracking of a training with MLflow: parameters, curves and the run's end, on a server or in a folder."""

import os
from collections.abc import Mapping
from typing import Any

from pipeline_steps.contract.errors import StepError

EXPERIMENT = "fine-tune"


class Tracking:
    """One MLflow run of one training. Nothing is sent where `uri` is empty, or from any process but the first.

    uri: the ARN of a SageMaker MLflow server or app, or a folder. A server that stops answering ends the tracking, not
    the training; `lost` then says when and why.
    """

    def __init__(self, uri: str, name: str) -> None:
        self.uri, self.name, self.run_id, self.lost = uri, name, "", ""
        if not uri:
            return
        needed = ["mlflow", *(["sagemaker_mlflow"] if uri.startswith("arn:") else [])]
        missing = [package for package in needed if not _installed(package)]
        if missing:
            raise StepError(
                f"mlflow_tracking_uri is {uri!r}, but the image lacks {', '.join(missing)}; name an image that has them in "
                "images.training_image_uri, or leave mlflow_tracking_uri empty"
            )
        if not uri.startswith("arn:"):
            os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"  # MLflow keeps its folders, but asks for this word

    def start(self, run_id: str, parameters: Mapping[str, Any]) -> None:
        """Begin a run, or go on with `run_id`, which an interrupted training began."""
        if not self.uri:
            return
        import mlflow

        def begin() -> None:
            mlflow.set_tracking_uri(self.uri)
            mlflow.set_experiment(EXPERIMENT)
            run = mlflow.start_run(run_id=run_id or None, run_name=self.name, log_system_metrics=False)
            self.run_id = run.info.run_id
            if not run_id:
                mlflow.log_params(dict(parameters))

        self._send(begin, "its start")

    def log(self, step: int, **metrics: float) -> None:
        if self.run_id and not self.lost:
            import mlflow

            self._send(lambda: mlflow.log_metrics(metrics, step=step, synchronous=False), f"step {step}")

    def end(self, tags: Mapping[str, str]) -> None:
        """The run is complete; a training that fails or is interrupted leaves it open for the next start."""
        if self.run_id and not self.lost:
            import mlflow

            def finish() -> None:
                mlflow.set_tags(dict(tags))
                mlflow.end_run()

            self._send(finish, "its end")

    def _send(self, call: Any, where: str) -> None:
        try:
            call()
        except Exception as error:  # whatever a server or a network makes of it; the training is worth more
            self.lost = f"MLflow at {self.uri} failed at {where}: {type(error).__name__}: {error}"
            print(f"tracking ends, training goes on. {self.lost}", flush=True)


def _installed(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None
