"""Settings: what is accepted, and how a wrong file is told."""

from pathlib import Path

import pytest

from config.settings import DatasetSettings, Settings, SettingsError, deployments, environments, load

MINIMAL = "name: demo\nbase_model: {name: tiny}\n"


def written(folder: Path, text: str) -> Path:
    (folder / "mine.yaml").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("environment", environments())
def test_every_configuration_that_we_ship_loads(environment: str) -> None:
    assert load(environment).finetune_pipeline_name.endswith("-finetune")


def test_we_ship_the_configurations_that_the_readme_names() -> None:
    assert environments() == ["accounts", "dev", "local", "private", "prod"]


def test_all_problems_of_a_file_are_told_at_once_with_value_and_nearest_key(tmp_path: Path) -> None:
    folder = written(
        tmp_path,
        "name: Demo\nregion: mars\nbase_model: {}\ntraining: {epohc: 2, learning_rate: -1}\nunknown_thing: 1\n",
    )
    with pytest.raises(SettingsError) as caught:
        load("mine", folder)
    message = str(caught.value)
    assert "6 problems" in message
    assert "training.epohc: unknown key (value 2); did you mean 'epoch'?" in message
    assert "training.learning_rate" in message and "-1" in message
    assert "base_model.name: missing" in message
    assert "'Demo'" in message and "'mars'" in message
    assert "unknown_thing: unknown key" in message and "known keys here: account, backend, base_model" in message


def test_splits_that_leave_nothing_to_train_on_are_refused(tmp_path: Path) -> None:
    folder = written(tmp_path, MINIMAL + "dataset: {validation_split_ratio: 0.5, test_split_ratio: 0.4}\n")
    with pytest.raises(SettingsError, match=r"0\.5.*0\.4.*below 0\.9"):
        load("mine", folder)


def test_a_manifest_outside_its_tuning_modes_folder_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path, MINIMAL + "dataset: {tuning_mode: domain}\n")
    with pytest.raises(SettingsError, match=r"'instruction/dataset\.manifest' but dataset.tuning_mode is 'domain'"):
        load("mine", folder)


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ("bits: 4, peft_type: None", r"bits is 4 and peft_type is 'None'.*use peft_type: lora, or bits: 16"),
        ("fp8: true, bits: 4", r"fp8 is true with peft_type 'lora' and bits 4.*or fp8: false"),
        ("mlflow_tracking_uri: somewhere", r"training.mlflow_tracking_uri: .*pattern.*'somewhere'"),
        ("spot: true", r"max_wait_hours is None and max_runtime_hours is 24.*set max_wait_hours to 24.* or more"),
        (
            "spot: true, max_runtime_hours: 10, max_wait_hours: 9.5",
            r"max_wait_hours is 9\.5 and max_runtime_hours is 10",
        ),
        ("spot: true, max_wait_hours: 48, keep_alive_minutes: 5", r"keep_alive_minutes is 5; SageMaker keeps no spot"),
        ("max_wait_hours: 48", r"max_wait_hours is 48.* but spot is false"),
        ("keep_alive_minutes: 361", r"keep_alive_minutes.*361"),
        ("keep_alive_minutes: -1", r"keep_alive_minutes.*-1"),
        ("spot: maybe", r"training\.spot.*'maybe'"),
    ],
)
def test_spot_and_warm_pool_settings_that_contradict_each_other_are_refused(
    tmp_path: Path, training: str, said: str
) -> None:
    with pytest.raises(SettingsError, match=said):
        load("mine", written(tmp_path, f"{MINIMAL}training: {{{training}}}\n"))


def test_spot_instances_that_are_waited_for_are_accepted(tmp_path: Path) -> None:
    training = "training: {spot: true, max_runtime_hours: 10, max_wait_hours: 10}\n"
    assert load("mine", written(tmp_path, MINIMAL + training)).training.spot is True


def test_an_unknown_environment_names_the_known_ones() -> None:
    with pytest.raises(SettingsError, match=r"'staging'.*accounts, dev, local, private, prod"):
        load("staging")


@pytest.mark.parametrize(("text", "said"), [("a: [", "not valid YAML"), ("- a", "holds list"), ("", "holds NoneType")])
def test_a_file_that_is_no_mapping_is_told_plainly(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        load("mine", written(tmp_path, text))


def test_settings_cannot_be_changed_after_loading() -> None:
    settings = load("local")
    with pytest.raises(ValueError, match="frozen"):
        settings.name = "other"  # type: ignore[misc]
    assert isinstance(settings, Settings)


def test_the_ray_engine_without_an_image_that_has_ray_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(
        "name: xy\nbase_model: {name: m}\nprocessing: {prepare_engine: ray}\n", encoding="utf-8"
    )
    with pytest.raises(SettingsError, match=r"images\.prepare_image_uri is not set; the training image has no Ray"):
        load("x", tmp_path)


def test_flags_of_prepare_data_leave_out_what_is_not_set() -> None:
    flags = DatasetSettings(max_quarantined_rows=5).flags()
    assert flags[flags.index("--max_quarantined_rows") + 1] == "5"
    assert "--split_group_column" not in flags and "--tuning_mode" not in flags


@pytest.mark.parametrize(
    ("release", "said"),
    [
        (
            "canary_instances: 1",
            r"canary_instances is 1 of instance_count 1; SageMaker takes at most half: set instance_count to 2",
        ),
        ("canary_instances: 2, instance_count: 3", r"instance_count to 4 or more, or canary_instances to 1"),
        (
            "canary_instances: 1, instance_count: 2, canary_wait_seconds: 100",
            r"100, too short for the alarms to ring.*set it to 120",
        ),
        (
            "canary_wait_seconds: 3000, bake_seconds: 3000",
            r"are 6000 s together, and max_update_minutes is 90.*to 130 or more",
        ),
        ("max_instance_count: 1, instance_count: 2", r"max_instance_count \(1\) is below instance_count \(2\)"),
        ("serve: adapter", r"serve is 'adapter' but shape is 'variant'"),
        ("scale_to_zero: true", r"scale_to_zero is true but shape is 'variant'"),
        ("endpoint: shared", r"endpoint is 'shared' but serve is 'merged'"),
        (
            "shape: inference_components",
            r"max_instance_count is None and instance_count is 1.*set max_instance_count to 2",
        ),
        (
            "shape: inference_components, max_instance_count: 2, canary_instances: 1",
            r"canary_instances is 1 but shape is 'inference_components'",
        ),
        ("max_total_tokens: 1024", r"release\.max_total_tokens is 1024 but training\.max_input_length is 2048"),
        ("max_update_minutes: 240", r"max_runtime_hours is 4.* release\.max_update_minutes is 240.*to 4\.5 or more"),
        ("max_p95_latency_seconds: 61", r"max_p95_latency_seconds.*61"),
        ("quality_alarms: [bad name]", r"quality_alarms.*'bad name'"),
        ("shape: serverless", r"release\.shape.*'serverless'"),
        (
            "target: bedrock, instance_count: 2, bake_seconds: 60",
            r"bake_seconds, instance_count: with target 'bedrock' there is no endpoint.*or set target: sagemaker",
        ),
    ],
)
def test_release_settings_that_contradict_each_other_are_refused(tmp_path: Path, release: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        load("mine", written(tmp_path, f"{MINIMAL}release: {{{release}}}\n"))


def test_an_adapter_of_a_rank_that_is_not_served_is_refused(tmp_path: Path) -> None:
    text = (
        MINIMAL
        + "training: {lora_r: 600}\nrelease: {shape: inference_components, max_instance_count: 2, serve: adapter}\n"
    )
    with pytest.raises(
        SettingsError, match=r"'adapter' but training\.peft_type is 'lora' with lora_r 600.*rank 512 at most"
    ):
        load("mine", written(tmp_path, text))


def test_both_shapes_are_accepted(tmp_path: Path) -> None:
    variant = "release: {instance_count: 2, canary_instances: 1, max_instance_count: 6}\n"
    assert load("mine", written(tmp_path, MINIMAL + variant)).inference_component_name is None
    components = "release: {shape: inference_components, serve: adapter, endpoint: shared, max_instance_count: 2, scale_to_zero: true}\n"
    settings = load("mine", written(tmp_path, MINIMAL + components))
    assert (settings.endpoint_name, settings.inference_component_name) == ("shared", "demo")
    flags = settings.release.flags()
    assert "--scale_to_zero" in flags and "--approval_status" not in flags and "--endpoint" not in flags


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ("vpc: nearby", r"network\.vpc: .*'nearby'"),
        ("vpc: create, subnet_ids: [subnet-0123456789abcdef0]", r"subnet_ids is .* but vpc is 'create'.*remove it"),
        ("vpc: vpc-0123456789abcdef0", r"subnet_ids is missing; .*; security_group_ids is missing; vpc is 'vpc-0123"),
        (
            "vpc: vpc-01234567, subnet_ids: [subnet-01234567, subnet-01234567], security_group_ids: [sg-01234567]",
            r"subnet_ids is \['subnet-01234567', 'subnet-01234567'\]; name each once",
        ),
        (
            "vpc: vpc-01234567, subnet_ids: [mine], security_group_ids: [sg-01234567]",
            r"network\.subnet_ids\.0: .*'mine'",
        ),
    ],
)
def test_a_network_that_cannot_be_is_refused(tmp_path: Path, network: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        load("mine", written(tmp_path, f"{MINIMAL}network: {{{network}}}\n"))


@pytest.mark.parametrize("image", ["python:3.11", "123456789012.dkr.ecr.us-east-1.amazonaws.com/mine", "mine@sha256:0"])
def test_an_image_that_sagemaker_does_not_take_is_refused(tmp_path: Path, image: str) -> None:
    with pytest.raises(SettingsError, match=rf"images\.training_image_uri.*'{image}'"):
        load("mine", written(tmp_path, f"{MINIMAL}images: {{training_image_uri: '{image}'}}\n"))


def test_what_a_vpc_needs_endpoints_for_depends_on_who_is_asked(tmp_path: Path) -> None:
    asked = load("mine", written(tmp_path, MINIMAL)).asked_services
    assert list(asked) == ["s3", "sagemaker.api", "sagemaker.runtime", "monitoring", "application-autoscaling"]
    to_bedrock = load("mine", written(tmp_path, MINIMAL + "release: {target: bedrock}\n")).asked_services
    assert list(to_bedrock) == ["s3", "sagemaker.api", "bedrock"]
    server = "arn:aws:sagemaker:us-east-1:123456789012:mlflow-tracking-server/t"
    more = f"gate: {{judge_model_id: j}}\ntraining: {{mlflow_tracking_uri: '{server}'}}\n"
    assert load("mine", written(tmp_path, MINIMAL + more)).asked_services.keys() - asked.keys() == {
        "bedrock-runtime",
        "experiments",
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("monitoring: {kept_days: 1, window_hours: 48}", r"kept_days is 1 but window_hours is 48.*set kept_days to 2"),
        ("monitoring: {max_length_ratio: 1}", r"monitoring\.max_length_ratio"),
        ("retraining: {overlap: maybe}", r"retraining\.overlap: .*'wait' or 'refuse'"),
        ("operations: {idle_endpoint_hours: 169}", r"operations\.idle_endpoint_hours: .*168"),
        ("operations: {notification_email: nobody}", r"operations\.notification_email"),
        (
            "monitoring: {enabled: true}\nrelease: {shape: inference_components, max_instance_count: 2}",
            r"monitoring\.enabled is true but release\.shape is 'inference_components'",
        ),
        (
            "monitoring: {enabled: true}\nregion: eu-west-1\nrelease: {target: bedrock}",
            r"region is 'eu-west-1'; Bedrock imports models in eu-central-1, us-east-1.*monitoring\.enabled is true",
        ),
    ],
)
def test_settings_of_operations_that_cannot_be_are_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        load("mine", written(tmp_path, f"{MINIMAL}{text}\n"))


def test_monitors_flags_are_its_limits_and_its_window(tmp_path: Path) -> None:
    flags = load("mine", written(tmp_path, MINIMAL)).monitoring.flags()
    assert flags[::2] == [
        "--window_hours", "--min_requests", "--max_length_ratio", "--max_refused_increase", "--max_repetition_increase",
        "--max_unended_increase", "--max_similarity_decrease",
    ]  # fmt: skip


PLACES = "account: '111111111111'\nserving: {eu: {account: '222222222222', region: eu-west-1}}\n"


def test_a_serving_place_has_the_same_names_in_an_account_and_region_of_its_own(tmp_path: Path) -> None:
    folder = written(tmp_path, MINIMAL + PLACES)
    whole, there = load("mine", folder), load("mine/eu", folder)
    assert (whole.trains, whole.serves, whole.place) == (True, False, None)
    assert (there.trains, there.serves, there.place) == (False, True, "eu")
    assert (there.account, there.region) == ("222222222222", "eu-west-1")
    assert (there.registry.account, there.registry.region) == (whole.account, whole.region)
    assert there.endpoint_name == whole.endpoint_name and there.stack_name("storage") == f"{whole.name}-storage-eu"
    assert (
        there.pipeline_names == [there.deploy_pipeline_name] and there.deploy_pipeline_name not in whole.pipeline_names
    )
    assert deployments(folder) == ["mine", "mine/eu"]


def test_a_place_that_the_file_does_not_have_is_told_with_those_that_it_has(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"mine has no serving place 'us'; those in its file: mine/eu"):
        load("mine/us", written(tmp_path, MINIMAL + PLACES))
    with pytest.raises(SettingsError, match=r"prod has no serving place 'eu'; those in its file: none"):
        load("prod/eu")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (PLACES.replace("account: '111111111111'\n", ""), r"serving is set but account is not"),
        (f"{PLACES}monitoring: {{enabled: true}}\n", r"monitoring\.enabled is True.* only be False"),
        (f"{PLACES}release: {{target: bedrock}}\nregion: us-east-1\n", r"release\.target is 'bedrock'"),
        (
            "account: '111111111111'\nserving: {here: {account: '111111111111', region: us-east-1}}\n",
            r"serving\.here is 111111111111 in us-east-1, as the pipelines",
        ),
        (
            "account: '111111111111'\nserving: {a: {account: '222222222222', region: us-east-1}, "
            "b: {account: '222222222222', region: us-east-1}}\n",
            r"serving\.b is 222222222222 in us-east-1, as serving\.a",
        ),
        (
            "account: '111111111111'\nserving: {eu: {account: '222222222222', region: eu-west-1, network: {vpc: create}}}\n",
            r"serving\.eu\.network is set and its region is eu-west-1; .* us-east-1 cannot be reached",
        ),
        (
            "account: '111111111111'\nserving: {"
            + ", ".join(f"p{n}: {{account: '22222222222{n}', region: us-east-1}}" for n in range(6))
            + "}\n",
            r"serving: .*at most 5 items",
        ),
        (PLACES.replace("222222222222", "22"), r"serving\.eu\.account"),
        (PLACES.replace("eu:", "Eu:"), r"serving\.Eu"),
        (PLACES.replace("region: eu-west-1", "regoin: eu-west-1"), r"did you mean 'region'"),
    ],
)
def test_serving_places_that_cannot_be_are_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        load("mine", written(tmp_path, MINIMAL + text))
