"""How a stack changes: moto's change sets, with what the CDK CLI needs of a second deployment and of one that fails.

moto finds a change set by its name alone, although every stack of the CDK CLI's has one of the same name; it removes
before it adds, whatever the DeletionPolicy; and an error leaves the stack half changed. Here a change is found by its
stack too, adds and updates first and removes last, and what fails is undone, with the resource's name in the events.
"""

import copy
import logging
from collections.abc import Callable
from typing import Any

from moto.cloudformation import models, parsing
from moto.cloudformation.exceptions import AlreadyExistsException, CloudFormationError, ValidationError
from moto.cloudformation.responses import CloudFormationResponse
from moto.core.common_models import CloudFormationModel
from moto.core.responses import ActionResult, EmptyResult

log = logging.getLogger(__name__)


class ChangeSetNotFound(CloudFormationError):  # type: ignore[misc]
    """The CDK CLI waits for this very code after it has deleted a change set."""

    code = "ChangeSetNotFound"


class ResourceFailure(Exception):
    """A resource could not be created or updated; the message is for the stack's events."""

    def __init__(self, logical_id: str, type_name: str, error: Exception) -> None:
        super().__init__(f"{logical_id} ({type_name}): {type(error).__name__}: {error}")
        self.logical_id, self.type_name = logical_id, type_name


def install() -> None:
    """Take over changes of stacks from moto."""
    backend = models.CloudFormationBackend
    backend.create_change_set = _create_change_set(backend.create_change_set)
    backend.execute_change_set = _execute_change_set
    backend.create_stack = _create_stack
    backend.update_stack = _update_stack
    backend.delete_stack = _delete_stack
    models.Stack.stack_parameters = property(_given_parameters)
    models.Stack.outputs = property(_when_unchanged(models.Stack.outputs.fget))
    CloudFormationResponse.describe_change_set = _answer_describe
    CloudFormationResponse.delete_change_set = _answer_delete
    parsing.ResourceMap.update = _update_resources
    parsing.ResourceMap.delete = _delete_resources
    parsing.parse_and_create_resource = _named(parsing.parse_and_create_resource)
    parsing.parse_and_update_resource = _named(_update_or_refuse(parsing.parse_and_update_resource))


# ---------------------------------------------------------------- change sets


def _given_parameters(stack: Any) -> dict[str, Any]:
    """What UsePreviousValue stands for: for an SSM parameter its name, where moto gives its value of that day."""
    slots = stack.template_dict.get("Parameters", {})
    defaults = {name: slot["Default"] for name, slot in slots.items() if "Default" in slot}
    return {**defaults, **stack.resource_map.input_parameters}


def _when_unchanged(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A stack's outputs; none while it is being changed.

    moto makes a resource when somebody asks for it, so whoever looked at the outputs meanwhile, as the CDK CLI does,
    would make those that they name again: of a stack that is being deleted, for good.
    """
    return lambda stack: None if getattr(stack, "being_changed", False) else original(stack)


def _find(backend: Any, name: str, stack: str | None) -> Any:
    """The newest change set of a stack that exists, by its ARN, or by its name and the stack's name or ARN."""
    for id_, change_set in reversed(backend.change_sets.items()):
        if change_set.stack_id not in backend.stacks:
            continue
        if name == id_ or (
            name == change_set.change_set_name and stack in (None, change_set.stack_name, change_set.stack_id)
        ):
            return change_set
    raise ChangeSetNotFound(f"ChangeSet [{name}] does not exist")


def _answer_describe(self: Any) -> ActionResult:
    return ActionResult(
        _find(self.cloudformation_backend, self._get_param("ChangeSetName"), self._get_param("StackName"))
    )


def _answer_delete(self: Any) -> ActionResult:
    backend = self.cloudformation_backend
    try:
        change_set = _find(backend, self._get_param("ChangeSetName"), self._get_param("StackName"))
    except ChangeSetNotFound:
        return EmptyResult()  # as AWS: what is not there is deleted
    del backend.change_sets[change_set.change_set_id]
    return EmptyResult()


def _create_change_set(original: Callable[..., tuple[str, str]]) -> Callable[..., tuple[str, str]]:
    def create(self: Any, stack_name: str, *arguments: Any, **keywords: Any) -> tuple[str, str]:
        if keywords["change_set_type"] == "CREATE":
            _refuse_second(self, stack_name)
        return original(self, stack_name, *arguments, **keywords)

    return create


def _refuse_second(backend: Any, stack_name: str) -> None:
    if any(stack.name == stack_name and stack.status != "REVIEW_IN_PROGRESS" for stack in backend.stacks.values()):
        raise AlreadyExistsException(f"Stack {stack_name} already exists")


def _execute_change_set(self: Any, change_set_name: str, stack_name: str | None = None) -> None:
    """Apply the change; what fails ends in the stack's status and events, and is undone."""
    change_set = _find(self, change_set_name, stack_name)
    stack, kind = change_set.stack, change_set.change_set_type
    stack._add_stack_event(f"{kind}_IN_PROGRESS", resource_status_reason="User Initiated")
    stack.resource_map.cross_stack_resources = self.exports
    before = copy.deepcopy(stack.template_dict), copy.deepcopy(stack.resource_map.input_parameters)
    stack.being_changed = True
    try:
        _apply(change_set, stack, kind, before, self.exports)
    finally:
        stack.being_changed = False


def _apply(
    change_set: Any,
    stack: Any,
    kind: str,
    before: tuple[dict[str, Any], dict[str, Any]],
    all_exports: dict[str, Any],
) -> None:
    try:
        change_set.apply()
        outputs = models.OutputMap(stack.resource_map, change_set.template_dict, stack.stack_id)
        exports = {export.name: export for export in outputs.exports}
    except Exception as error:  # whatever a service says about a resource is the stack's reason
        log.exception("stack %s: %s failed", stack.name, kind)
        _undo(stack, kind, before, error)
        change_set.execution_status = "EXECUTE_FAILED"
        return
    for name in {export.name for export in stack.exports} - exports.keys():
        all_exports.pop(name, None)
    all_exports.update(exports)
    stack.template = change_set.template
    stack._parse_template()
    stack.output_map = outputs
    stack.parameters = change_set.parameters
    stack.status, change_set.execution_status = f"{kind}_COMPLETE", "EXECUTE_COMPLETE"
    stack._add_stack_event(stack.status)


def _undo(stack: Any, kind: str, before: tuple[dict[str, Any], dict[str, Any]], error: Exception) -> None:
    reason = str(error) if isinstance(error, ResourceFailure) else f"{type(error).__name__}: {error}"
    if isinstance(error, ResourceFailure):
        _add_resource_event(stack, error.logical_id, error.type_name, f"{kind}_FAILED", reason)
    prefix = "ROLLBACK" if kind == "CREATE" else "UPDATE_ROLLBACK"
    stack._add_stack_event(f"{prefix}_IN_PROGRESS", resource_status_reason=reason)
    template, parameters = before
    stack.status, stack.status_reason = f"{prefix}_COMPLETE", reason
    try:
        stack.resource_map.update({"Resources": {}, **template}, parameters)
    except Exception as second:
        log.exception("stack %s: the way back failed", stack.name)
        stack.status = f"{prefix}_FAILED"
        stack.status_reason = f"{reason}; on the way back: {second}"
    stack._add_stack_event(stack.status, resource_status_reason=stack.status_reason)


def _add_resource_event(stack: Any, logical_id: str, type_name: str, status: str, reason: str) -> None:
    stack.events.append(
        models.Event(
            stack_id=stack.stack_id,
            stack_name=stack.name,
            logical_resource_id=logical_id,
            physical_resource_id="",
            resource_type=type_name,
            resource_status=status,
            resource_status_reason=reason,
            resource_properties=None,
        )
    )


# ---------------------------------------------------------------- stacks without a change set of the caller's


def _create_stack(
    self: Any,
    name: str,
    template: str,
    parameters: dict[str, Any],
    notification_arns: list[str] | None = None,
    tags: dict[str, str] | None = None,
    role_arn: str | None = None,
    enable_termination_protection: bool | None = False,
    timeout_in_mins: int | None = None,
    stack_policy_body: str | None = None,
) -> Any:
    stack = _through_a_change_set(self, name, template, parameters, "CREATE", tags, role_arn, notification_arns)
    stack.enable_termination_protection = enable_termination_protection or False
    stack.timeout_in_minutes, stack.policy = timeout_in_mins, stack_policy_body or ""
    return stack


def _update_stack(
    self: Any,
    name: str,
    template: str,
    role_arn: str | None,
    parameters: list[dict[str, Any]],
    tags: dict[str, str] | None,
) -> Any:
    stack = self.get_stack(name)
    resolved = self._resolve_update_parameters(instance=stack, incoming_params=parameters)
    return _through_a_change_set(self, stack.name, template or stack.template, resolved, "UPDATE", tags, role_arn)


def _through_a_change_set(
    backend: Any,
    name: str,
    template: str,
    parameters: dict[str, Any],
    kind: str,
    tags: dict[str, str] | None,
    role_arn: str | None,
    notification_arns: list[str] | None = None,
) -> Any:
    id_, stack_id = backend.create_change_set(
        stack_name=name,
        change_set_name="without-a-change-set",
        template=template,
        parameters=parameters,
        description="",
        change_set_type=kind,
        notification_arns=notification_arns,
        tags=tags,
        role_arn=role_arn,
    )
    change_set = backend.change_sets[id_]
    try:
        if change_set.status == "FAILED":
            raise ValidationError(message="No updates are to be performed.")
        backend.execute_change_set(id_)
    finally:
        del backend.change_sets[id_]
    stack = backend.stacks[stack_id]
    if tags is not None:
        stack.tags = tags
    stack.role_arn = role_arn or stack.role_arn
    return stack


def _delete_stack(self: Any, name_or_stack_id: str) -> None:
    """Delete every resource; one that cannot be deleted leaves the stack DELETE_FAILED, with the reason."""
    stacks = [stack for stack in self.stacks.values() if name_or_stack_id in (stack.stack_id, stack.name)]
    for stack in stacks:
        names = [export.name for export in stack.exports]
        stack.being_changed = True
        try:
            stack.delete()
        except Exception as error:  # of any service
            log.exception("stack %s: DELETE failed", stack.name)
            stack.status, stack.status_reason = "DELETE_FAILED", f"{type(error).__name__}: {error}"
            stack._add_stack_event("DELETE_FAILED", resource_status_reason=stack.status_reason)
            stack.being_changed = False
            continue
        for name in names:
            self.exports.pop(name, None)
        self.deleted_stacks[stack.stack_id] = self.stacks.pop(stack.stack_id)


# ---------------------------------------------------------------- resources


def _update_resources(self: Any, template: dict[str, Any], parameters: dict[str, Any] | None = None) -> None:
    """From what the stack holds to `template`: add, update, then remove what is not to be retained."""
    changes = self.build_resource_diff(template, parameters)
    # Newest first: what was added later may use what was added before. A false condition leaves one that never was.
    removed = {
        name: self._resource_json_map[name] for name in reversed(self._parsed_resources) if name in changes["Remove"]
    }
    self._template = template
    if parameters:
        self.input_parameters = parameters
    self.load_mapping()
    self.transform_mapping()
    self.load_parameters()
    self.load_conditions()
    self._resource_json_map = template["Resources"]
    for name in self._ResourceMap__get_resources_in_dependency_order():
        if name in changes["Add"]:
            _ = self[name]
    for name in self._ResourceMap__get_resources_in_dependency_order():
        if name in changes["Modify"]:
            self._parsed_resources[name] = parsing.parse_and_update_resource(
                name, self._resource_json_map[name], self, account_id=self._account_id, region_name=self._region_name
            )
    for name, resource_json in removed.items():
        resource = self._parsed_resources.pop(name)
        if isinstance(resource, CloudFormationModel) and resource_json.get("DeletionPolicy") != "Retain":
            try:
                self._delete_resource(resource, resource_json)
            except Exception:
                # As AWS: the update has succeeded; what could not be cleaned up is left, and told.
                log.exception("%s (%s) could not be deleted and is left", name, resource_json["Type"])


def _delete_resources(self: Any) -> None:
    """Delete all but what is to be retained, newest first; what cannot go yet is tried again when the others are gone."""
    left = [
        name
        for name in reversed(list(self._parsed_resources))
        if isinstance(self._parsed_resources[name], CloudFormationModel)
        and self._resource_json_map[name].get("DeletionPolicy") != "Retain"
    ]
    failure: Exception | None = None
    while left:
        again = []
        for name in left:
            try:
                self._delete_resource(self._parsed_resources[name], self._resource_json_map[name])
                del self._parsed_resources[name]
            except Exception as error:  # of any service
                again.append(name)
                failure = error
        if len(again) == len(left) and failure is not None:
            raise failure
        left = again


def _named(original: Callable[..., Any]) -> Callable[..., Any]:
    """Errors of a resource carry its name."""

    def call(logical_id: str, resource_json: dict[str, Any], *arguments: Any, **keywords: Any) -> Any:
        try:
            return original(logical_id, resource_json, *arguments, **keywords)
        except ResourceFailure:  # of a resource that this one refers to
            raise
        except Exception as error:
            raise ResourceFailure(logical_id, resource_json["Type"], error) from error

    return call


def _update_or_refuse(original: Callable[..., Any]) -> Callable[..., Any]:
    """moto skips the update of a type that it cannot update, and forgets the resource."""

    def update(logical_id: str, resource_json: dict[str, Any], *arguments: Any, **keywords: Any) -> Any:
        resource = original(logical_id, resource_json, *arguments, **keywords)
        if resource is None:
            raise NotImplementedError(
                f"an update of {resource_json['Type']} is not implemented by local AWS; give the resource another logical id"
            )
        return resource

    return update
