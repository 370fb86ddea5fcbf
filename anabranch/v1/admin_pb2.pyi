import datetime

from anabranch.v1 import generation_pb2 as _generation_pb2
from anabranch.v1 import options_pb2 as _options_pb2
from anabranch.v1 import session_pb2 as _session_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BackendState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BACKEND_STATE_UNSPECIFIED: _ClassVar[BackendState]
    BACKEND_STATE_CONNECTING: _ClassVar[BackendState]
    BACKEND_STATE_READY: _ClassVar[BackendState]
    BACKEND_STATE_DRAINING: _ClassVar[BackendState]
    BACKEND_STATE_LOST: _ClassVar[BackendState]

class BreakerState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BREAKER_STATE_UNSPECIFIED: _ClassVar[BreakerState]
    BREAKER_STATE_CLOSED: _ClassVar[BreakerState]
    BREAKER_STATE_OPEN: _ClassVar[BreakerState]
    BREAKER_STATE_HALF_OPEN: _ClassVar[BreakerState]
BACKEND_STATE_UNSPECIFIED: BackendState
BACKEND_STATE_CONNECTING: BackendState
BACKEND_STATE_READY: BackendState
BACKEND_STATE_DRAINING: BackendState
BACKEND_STATE_LOST: BackendState
BREAKER_STATE_UNSPECIFIED: BreakerState
BREAKER_STATE_CLOSED: BreakerState
BREAKER_STATE_OPEN: BreakerState
BREAKER_STATE_HALF_OPEN: BreakerState

class ListBackendsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListBackendsResponse(_message.Message):
    __slots__ = ("backends",)
    BACKENDS_FIELD_NUMBER: _ClassVar[int]
    backends: _containers.RepeatedCompositeFieldContainer[BackendStatus]
    def __init__(self, backends: _Optional[_Iterable[_Union[BackendStatus, _Mapping]]] = ...) -> None: ...

class BackendStatus(_message.Message):
    __slots__ = ("backend_id", "address", "tier", "state", "models", "load", "load_age", "in_flight", "drained", "version", "zone", "detail", "breaker", "warmth", "prefix_blocks")
    BACKEND_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    LOAD_AGE_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    DRAINED_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ZONE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    BREAKER_FIELD_NUMBER: _ClassVar[int]
    WARMTH_FIELD_NUMBER: _ClassVar[int]
    PREFIX_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    backend_id: str
    address: str
    tier: _generation_pb2.Tier
    state: BackendState
    models: _containers.RepeatedScalarFieldContainer[str]
    load: _session_pb2.LoadReport
    load_age: _duration_pb2.Duration
    in_flight: int
    drained: bool
    version: str
    zone: str
    detail: str
    breaker: BreakerState
    warmth: float
    prefix_blocks: int
    def __init__(self, backend_id: _Optional[str] = ..., address: _Optional[str] = ..., tier: _Optional[_Union[_generation_pb2.Tier, str]] = ..., state: _Optional[_Union[BackendState, str]] = ..., models: _Optional[_Iterable[str]] = ..., load: _Optional[_Union[_session_pb2.LoadReport, _Mapping]] = ..., load_age: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., in_flight: _Optional[int] = ..., drained: _Optional[bool] = ..., version: _Optional[str] = ..., zone: _Optional[str] = ..., detail: _Optional[str] = ..., breaker: _Optional[_Union[BreakerState, str]] = ..., warmth: _Optional[float] = ..., prefix_blocks: _Optional[int] = ...) -> None: ...

class DrainBackendRequest(_message.Message):
    __slots__ = ("backend_id",)
    BACKEND_ID_FIELD_NUMBER: _ClassVar[int]
    backend_id: str
    def __init__(self, backend_id: _Optional[str] = ...) -> None: ...

class DrainBackendResponse(_message.Message):
    __slots__ = ("backend",)
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    backend: BackendStatus
    def __init__(self, backend: _Optional[_Union[BackendStatus, _Mapping]] = ...) -> None: ...

class UndrainBackendRequest(_message.Message):
    __slots__ = ("backend_id",)
    BACKEND_ID_FIELD_NUMBER: _ClassVar[int]
    backend_id: str
    def __init__(self, backend_id: _Optional[str] = ...) -> None: ...

class UndrainBackendResponse(_message.Message):
    __slots__ = ("backend",)
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    backend: BackendStatus
    def __init__(self, backend: _Optional[_Union[BackendStatus, _Mapping]] = ...) -> None: ...

class ResetBreakerRequest(_message.Message):
    __slots__ = ("backend_id",)
    BACKEND_ID_FIELD_NUMBER: _ClassVar[int]
    backend_id: str
    def __init__(self, backend_id: _Optional[str] = ...) -> None: ...

class ResetBreakerResponse(_message.Message):
    __slots__ = ("backend",)
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    backend: BackendStatus
    def __init__(self, backend: _Optional[_Union[BackendStatus, _Mapping]] = ...) -> None: ...

class ExplainRouteRequest(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: _generation_pb2.GenerateRequest
    def __init__(self, request: _Optional[_Union[_generation_pb2.GenerateRequest, _Mapping]] = ...) -> None: ...

class ExplainRouteResponse(_message.Message):
    __slots__ = ("verdict", "backend_id", "overflow_reason", "refusal_reason", "explanation", "candidates", "resolved_model", "policy_version", "algorithm", "ttft_objective", "tpot_objective", "prompt_tokens", "overflowing", "waiting")
    class Verdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        VERDICT_UNSPECIFIED: _ClassVar[ExplainRouteResponse.Verdict]
        VERDICT_DISPATCH: _ClassVar[ExplainRouteResponse.Verdict]
        VERDICT_WAIT: _ClassVar[ExplainRouteResponse.Verdict]
        VERDICT_REFUSE: _ClassVar[ExplainRouteResponse.Verdict]
    VERDICT_UNSPECIFIED: ExplainRouteResponse.Verdict
    VERDICT_DISPATCH: ExplainRouteResponse.Verdict
    VERDICT_WAIT: ExplainRouteResponse.Verdict
    VERDICT_REFUSE: ExplainRouteResponse.Verdict
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    BACKEND_ID_FIELD_NUMBER: _ClassVar[int]
    OVERFLOW_REASON_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_REASON_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    RESOLVED_MODEL_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    ALGORITHM_FIELD_NUMBER: _ClassVar[int]
    TTFT_OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    TPOT_OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OVERFLOWING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    verdict: ExplainRouteResponse.Verdict
    backend_id: str
    overflow_reason: _generation_pb2.OverflowReason
    refusal_reason: str
    explanation: str
    candidates: _containers.RepeatedCompositeFieldContainer[RouteCandidate]
    resolved_model: str
    policy_version: str
    algorithm: str
    ttft_objective: _duration_pb2.Duration
    tpot_objective: _duration_pb2.Duration
    prompt_tokens: int
    overflowing: bool
    waiting: int
    def __init__(self, verdict: _Optional[_Union[ExplainRouteResponse.Verdict, str]] = ..., backend_id: _Optional[str] = ..., overflow_reason: _Optional[_Union[_generation_pb2.OverflowReason, str]] = ..., refusal_reason: _Optional[str] = ..., explanation: _Optional[str] = ..., candidates: _Optional[_Iterable[_Union[RouteCandidate, _Mapping]]] = ..., resolved_model: _Optional[str] = ..., policy_version: _Optional[str] = ..., algorithm: _Optional[str] = ..., ttft_objective: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., tpot_objective: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., prompt_tokens: _Optional[int] = ..., overflowing: _Optional[bool] = ..., waiting: _Optional[int] = ...) -> None: ...

class RouteCandidate(_message.Message):
    __slots__ = ("backend_id", "tier", "feasible", "objection", "score", "predicted_ttft", "predicted_tpot", "cached_tokens", "expected_cost_microusd")
    BACKEND_ID_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    FEASIBLE_FIELD_NUMBER: _ClassVar[int]
    OBJECTION_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_TTFT_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_TPOT_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_COST_MICROUSD_FIELD_NUMBER: _ClassVar[int]
    backend_id: str
    tier: _generation_pb2.Tier
    feasible: bool
    objection: str
    score: float
    predicted_ttft: _duration_pb2.Duration
    predicted_tpot: _duration_pb2.Duration
    cached_tokens: int
    expected_cost_microusd: int
    def __init__(self, backend_id: _Optional[str] = ..., tier: _Optional[_Union[_generation_pb2.Tier, str]] = ..., feasible: _Optional[bool] = ..., objection: _Optional[str] = ..., score: _Optional[float] = ..., predicted_ttft: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., predicted_tpot: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., cached_tokens: _Optional[int] = ..., expected_cost_microusd: _Optional[int] = ...) -> None: ...

class GetPolicyRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetPolicyResponse(_message.Message):
    __slots__ = ("policy_yaml", "version", "source", "rejected")
    POLICY_YAML_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    policy_yaml: str
    version: str
    source: str
    rejected: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, policy_yaml: _Optional[str] = ..., version: _Optional[str] = ..., source: _Optional[str] = ..., rejected: _Optional[_Iterable[str]] = ...) -> None: ...

class UpdatePolicyRequest(_message.Message):
    __slots__ = ("policy_yaml", "expected_version")
    POLICY_YAML_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_VERSION_FIELD_NUMBER: _ClassVar[int]
    policy_yaml: str
    expected_version: str
    def __init__(self, policy_yaml: _Optional[str] = ..., expected_version: _Optional[str] = ...) -> None: ...

class UpdatePolicyResponse(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: str
    def __init__(self, version: _Optional[str] = ...) -> None: ...

class CancelRequestRequest(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class CancelRequestResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SetLogLevelRequest(_message.Message):
    __slots__ = ("level",)
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    level: str
    def __init__(self, level: _Optional[str] = ...) -> None: ...

class SetLogLevelResponse(_message.Message):
    __slots__ = ("previous_level",)
    PREVIOUS_LEVEL_FIELD_NUMBER: _ClassVar[int]
    previous_level: str
    def __init__(self, previous_level: _Optional[str] = ...) -> None: ...
