from __future__ import annotations

import pytest

from xllm.errors import CapacityError, ContextTooLong, InstanceError, InternalError, InvalidRequest, XllmError
from xllm.rpc.failure import ERROR_TYPES, from_failure, from_output_error, to_failure, to_output_error
from xllm.types.output import OutputError


@pytest.mark.parametrize("name", sorted(ERROR_TYPES))
def test_every_error_keeps_its_type_status_hint_and_param(name: str) -> None:
    error = ERROR_TYPES[name]("it broke", hint="mend it", param="prompt")
    back = from_failure(to_failure(error))
    assert (type(back), back.message, back.hint, back.param) == (type(error), "it broke", "mend it", "prompt")
    assert (back.status, back.retryable) == (error.status, error.retryable)


def test_capacity_keeps_when_to_come_back() -> None:
    back = from_failure(to_failure(CapacityError("full", retry_after_s=2.5, status=503)))
    assert isinstance(back, CapacityError)
    assert (back.retry_after_s, back.status, back.type_name) == (2.5, 503, "ServiceUnavailableError")


def test_the_names_of_the_api_are_understood_too() -> None:
    assert type(from_output_error(OutputError("BadRequestError", 400, "m"))) is InvalidRequest
    assert type(from_output_error(OutputError("ServiceUnavailableError", 503, "m", True))) is InstanceError
    unknown = from_output_error(OutputError("Martian", 418, "m"))
    assert type(unknown) is XllmError
    assert unknown.status == 418


def test_foreign_exceptions_are_internal_errors() -> None:
    assert to_output_error(KeyError("x")).type_name == InternalError.__name__
    assert to_output_error(ContextTooLong("long")).status == 400
