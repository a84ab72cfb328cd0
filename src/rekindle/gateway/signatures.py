"""Handlers' signatures as shapes of requests: a model with a field for each parameter, checked before anything is sent."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, cast, get_args, get_origin, get_type_hints
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, create_model

from rekindle.actors import EntityType, Rejected
from rekindle.actors.entity import HandlerType

_PLAIN: Final = (str, int, float, bool, Decimal, UUID, datetime, date, time, timedelta, Enum)
"""What a query parameter can say."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The request of one handler. parameters: by the model's fields, each with how the handler takes it."""

    model: type[BaseModel]
    parameters: Mapping[str, inspect.Parameter]
    returns: Any
    summary: str
    is_optional: bool
    """Whether a call without any argument is one."""
    is_plain: bool
    """Whether query parameters can say it."""

    def call(self, request: BaseModel) -> tuple[list[Any], dict[str, Any]]:
        """The arguments of the call: what was left out is left to the handler's own default."""
        args, kwargs = list[Any](), dict[str, Any](request.model_extra or {})
        for field, parameter in self.parameters.items():
            if field not in request.model_fields_set:
                continue
            value = getattr(request, field)
            match parameter.kind:
                case inspect.Parameter.POSITIONAL_ONLY:
                    args.append(value)
                case inspect.Parameter.VAR_POSITIONAL:
                    args.extend(value)
                case _:
                    kwargs[parameter.name] = value
        return args, kwargs


def shape_of(kind: EntityType, handler: HandlerType, *more: tuple[str, Any, Any]) -> Shape:
    """The shape of a handler's requests. more: fields of the model besides the handler's own: name, type, default."""
    function = handler.function
    hints = get_type_hints(function, include_extras=True)
    signature = inspect.signature(function)
    own = list(signature.parameters.values())[1:]
    fields: dict[str, Any] = {}
    parameters: dict[str, inspect.Parameter] = {}
    extra: Literal["allow", "forbid"] = "forbid"
    for number, parameter in enumerate(own):
        hint = hints.get(parameter.name, Any)
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            extra = "allow"
            continue
        name = f"field_{number}"  # a parameter may be called like a method of the model
        parameters[name] = parameter
        fields[name] = _field(parameter, hint)
    for name, hint, default in more:
        fields[name] = (hint, default)
    model = create_model(
        f"{kind.name}_{handler.short}",
        __config__=ConfigDict(extra=extra, title=f"{kind.name}.{handler.short}"),
        **fields,
    )
    return Shape(
        model,
        parameters,
        hints.get("return", Any),
        inspect.getdoc(function) or f"{handler.short} of {kind.name}",
        all(parameter.default is not inspect.Parameter.empty or _is_variadic(parameter) for parameter in own),
        extra == "forbid"
        and all(_is_plain(hints.get(p.name, Any)) and not _is_variadic(p) for p in own)
        and not {p.name for p in own} & {name for name, _, _ in more},
    )


def _is_variadic(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _field(parameter: inspect.Parameter, hint: Any) -> Any:
    if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
        return Annotated[list[hint], Field(alias=parameter.name)], []
    default = ... if parameter.default is inspect.Parameter.empty else parameter.default
    return Annotated[hint, Field(alias=parameter.name)], default


def _is_plain(hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _is_plain(arguments[0])
    if origin in (Union, UnionType):
        return all(argument is NoneType or _is_plain(argument) for argument in arguments)
    if origin is Literal:
        return True
    return isinstance(hint, type) and issubclass(hint, _PLAIN)


def refusals_of(kind: EntityType, handler: HandlerType) -> list[type[Rejected]]:
    """The refusals that a handler raises by name, itself or in the entity's other methods. It may raise others."""
    handlers = {other.function for other in kind.handlers.values()}
    plain: list[Callable[..., Any]] = [
        cast("Callable[..., Any]", member)
        for cls in kind.cls.__mro__
        for member in vars(cls).values()
        if inspect.isfunction(member) and member not in handlers
    ]
    found = [cls for function in (handler.function, *plain) for cls in _named(function)]
    return sorted(set(found), key=lambda cls: cls.__name__)


def _named(function: Callable[..., Any]) -> list[type[Rejected]]:
    code, known = function.__code__, getattr(function, "__globals__", {})
    values = [known.get(name) for name in code.co_names]
    return [value for value in values if isinstance(value, type) and issubclass(value, Rejected)]
