"""What services measure by themselves: lengths of queues, CPU of an endpoint's instances; and the alarm on an idle endpoint."""

import uuid

import pytest

from tests.local_aws.endpoints import config
from tests.local_aws.sagemaker_server import Server, running_server


@pytest.fixture
def server() -> Server:
    return running_server()


def alarm(server: Server, name: str, **request: object) -> None:
    server.client("cloudwatch").put_metric_alarm(
        AlarmName=name, EvaluationPeriods=1, TreatMissingData="notBreaching", **request
    )


def state(server: Server, name: str) -> str:
    return str(server.client("cloudwatch").describe_alarms(AlarmNames=[name])["MetricAlarms"][0]["StateValue"])


def test_an_alarm_rings_while_a_message_lies_in_a_queue(server: Server) -> None:
    name, sqs = f"queue-{uuid.uuid4().hex[:8]}", server.client("sqs")
    url = sqs.create_queue(QueueName=name)["QueueUrl"]
    alarm(
        server, name, Namespace="AWS/SQS", MetricName="ApproximateNumberOfMessagesVisible", Statistic="Maximum", Period=60,
        Dimensions=[{"Name": "QueueName", "Value": name}], Threshold=1, ComparisonOperator="GreaterThanOrEqualToThreshold",
    )  # fmt: skip
    server.wait_for(lambda: state(server, name) == "OK", seconds=60)
    sqs.send_message(QueueUrl=url, MessageBody="lost")
    server.wait_for(lambda: state(server, name) == "ALARM", seconds=60)
    sqs.purge_queue(QueueUrl=url)
    server.wait_for(lambda: state(server, name) == "OK", seconds=60)


def test_an_endpoint_that_nobody_asks_is_idle_and_one_that_is_not_there_is_not(server: Server) -> None:
    name = f"idle-{uuid.uuid4().hex[:8]}"
    server.put("endpoint/model/weights", "w")
    variant = [{"Name": "EndpointName", "Value": name}, {"Name": "VariantName", "Value": "AllTraffic"}]

    def measured(id_: str, namespace: str, metric: str, statistic: str) -> dict[str, object]:
        found = {"Namespace": namespace, "MetricName": metric, "Dimensions": variant}
        return {"Id": id_, "MetricStat": {"Metric": found, "Period": 60, "Stat": statistic}, "ReturnData": False}

    alarm(
        server, name, Threshold=1, ComparisonOperator="LessThanThreshold",
        Metrics=[
            measured("requests", "AWS/SageMaker", "Invocations", "Sum"),
            measured("cpu", "/aws/sagemaker/Endpoints", "CPUUtilization", "Average"),
            {"Id": "asked", "Expression": "FILL(requests, 0) + 0 * cpu", "ReturnData": True},
        ],
    )  # fmt: skip
    server.wait_for(lambda: state(server, name) == "OK", seconds=60)
    server.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=config(server))
    assert server.endpoint(name)["EndpointStatus"] == "InService"
    server.wait_for(lambda: state(server, name) == "ALARM", seconds=60)
    server.runtime.invoke_endpoint(EndpointName=name, Body=b"x")
    server.wait_for(lambda: state(server, name) == "OK", seconds=60)
    server.sagemaker.delete_endpoint(EndpointName=name)
