import datetime

from anabranch.v1 import generation_pb2 as _generation_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.rpc import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SessionRequest(_message.Message):
    __slots__ = ("frames", "authorization", "open", "resume", "sequence", "ack", "close")
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    AUTHORIZATION_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    frames: _containers.RepeatedCompositeFieldContainer[SessionRequestFrame]
    authorization: str
    open: SessionOpen
    resume: SessionResume
    sequence: int
    ack: int
    close: bool
    def __init__(self, frames: _Optional[_Iterable[_Union[SessionRequestFrame, _Mapping]]] = ..., authorization: _Optional[str] = ..., open: _Optional[_Union[SessionOpen, _Mapping]] = ..., resume: _Optional[_Union[SessionResume, _Mapping]] = ..., sequence: _Optional[int] = ..., ack: _Optional[int] = ..., close: _Optional[bool] = ...) -> None: ...

class SessionOpen(_message.Message):
    __slots__ = ("resumable",)
    RESUMABLE_FIELD_NUMBER: _ClassVar[int]
    resumable: bool
    def __init__(self, resumable: _Optional[bool] = ...) -> None: ...

class SessionResume(_message.Message):
    __slots__ = ("session_id", "last_sequence")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    LAST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    last_sequence: int
    def __init__(self, session_id: _Optional[str] = ..., last_sequence: _Optional[int] = ...) -> None: ...

class SessionRequestFrame(_message.Message):
    __slots__ = ("stream", "start", "cancel", "traceparent", "on_behalf_of", "mask")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    ON_BEHALF_OF_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    stream: int
    start: _generation_pb2.GenerateRequest
    cancel: SessionCancel
    traceparent: str
    on_behalf_of: Caller
    mask: _containers.RepeatedScalarFieldContainer[_generation_pb2.PiiKind]
    def __init__(self, stream: _Optional[int] = ..., start: _Optional[_Union[_generation_pb2.GenerateRequest, _Mapping]] = ..., cancel: _Optional[_Union[SessionCancel, _Mapping]] = ..., traceparent: _Optional[str] = ..., on_behalf_of: _Optional[_Union[Caller, _Mapping]] = ..., mask: _Optional[_Iterable[_Union[_generation_pb2.PiiKind, str]]] = ...) -> None: ...

class SessionCancel(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Caller(_message.Message):
    __slots__ = ("tenant", "client_id")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    client_id: str
    def __init__(self, tenant: _Optional[str] = ..., client_id: _Optional[str] = ...) -> None: ...

class SessionResponse(_message.Message):
    __slots__ = ("ready", "frames", "load", "go_away", "sequence", "ack", "resumed", "prefix_cache", "models")
    READY_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    GO_AWAY_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    PREFIX_CACHE_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    ready: SessionReady
    frames: _containers.RepeatedCompositeFieldContainer[SessionResponseFrame]
    load: LoadReport
    go_away: GoAway
    sequence: int
    ack: int
    resumed: SessionResumed
    prefix_cache: PrefixCacheEvents
    models: ServedModels
    def __init__(self, ready: _Optional[_Union[SessionReady, _Mapping]] = ..., frames: _Optional[_Iterable[_Union[SessionResponseFrame, _Mapping]]] = ..., load: _Optional[_Union[LoadReport, _Mapping]] = ..., go_away: _Optional[_Union[GoAway, _Mapping]] = ..., sequence: _Optional[int] = ..., ack: _Optional[int] = ..., resumed: _Optional[_Union[SessionResumed, _Mapping]] = ..., prefix_cache: _Optional[_Union[PrefixCacheEvents, _Mapping]] = ..., models: _Optional[_Union[ServedModels, _Mapping]] = ...) -> None: ...

class ServedModels(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[_generation_pb2.ModelInfo]
    def __init__(self, models: _Optional[_Iterable[_Union[_generation_pb2.ModelInfo, _Mapping]]] = ...) -> None: ...

class PrefixCacheEvents(_message.Message):
    __slots__ = ("cleared", "stored", "removed")
    CLEARED_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    cleared: bool
    stored: _containers.RepeatedScalarFieldContainer[int]
    removed: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, cleared: _Optional[bool] = ..., stored: _Optional[_Iterable[int]] = ..., removed: _Optional[_Iterable[int]] = ...) -> None: ...

class SessionResumed(_message.Message):
    __slots__ = ("received",)
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    received: int
    def __init__(self, received: _Optional[int] = ...) -> None: ...

class SessionResponseFrame(_message.Message):
    __slots__ = ("stream", "chunk", "error", "last", "tokens")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    stream: int
    chunk: _generation_pb2.GenerateChunk
    error: _status_pb2.Status
    last: bool
    tokens: int
    def __init__(self, stream: _Optional[int] = ..., chunk: _Optional[_Union[_generation_pb2.GenerateChunk, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., last: _Optional[bool] = ..., tokens: _Optional[int] = ...) -> None: ...

class SessionReady(_message.Message):
    __slots__ = ("backend_id", "tier", "models", "version", "zone", "session_id", "resume_window", "resume_buffer_bytes", "prefix_cache_events")
    BACKEND_ID_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ZONE_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    RESUME_WINDOW_FIELD_NUMBER: _ClassVar[int]
    RESUME_BUFFER_BYTES_FIELD_NUMBER: _ClassVar[int]
    PREFIX_CACHE_EVENTS_FIELD_NUMBER: _ClassVar[int]
    backend_id: str
    tier: _generation_pb2.Tier
    models: _containers.RepeatedCompositeFieldContainer[_generation_pb2.ModelInfo]
    version: str
    zone: str
    session_id: str
    resume_window: _duration_pb2.Duration
    resume_buffer_bytes: int
    prefix_cache_events: bool
    def __init__(self, backend_id: _Optional[str] = ..., tier: _Optional[_Union[_generation_pb2.Tier, str]] = ..., models: _Optional[_Iterable[_Union[_generation_pb2.ModelInfo, _Mapping]]] = ..., version: _Optional[str] = ..., zone: _Optional[str] = ..., session_id: _Optional[str] = ..., resume_window: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., resume_buffer_bytes: _Optional[int] = ..., prefix_cache_events: _Optional[bool] = ...) -> None: ...

class LoadReport(_message.Message):
    __slots__ = ("sequence", "running", "waiting", "queued_prefill_tokens", "context_tokens", "kv_used_tokens", "kv_total_tokens", "step_time_ratio", "prefill_tokens_per_step", "output_tokens_per_second", "draining", "max_running", "step_time", "prefill_budget", "starts_seen", "step_model")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    QUEUED_PREFILL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_USED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_TOTAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STEP_TIME_RATIO_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TOKENS_PER_STEP_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    MAX_RUNNING_FIELD_NUMBER: _ClassVar[int]
    STEP_TIME_FIELD_NUMBER: _ClassVar[int]
    PREFILL_BUDGET_FIELD_NUMBER: _ClassVar[int]
    STARTS_SEEN_FIELD_NUMBER: _ClassVar[int]
    STEP_MODEL_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    running: int
    waiting: int
    queued_prefill_tokens: int
    context_tokens: int
    kv_used_tokens: int
    kv_total_tokens: int
    step_time_ratio: float
    prefill_tokens_per_step: float
    output_tokens_per_second: float
    draining: bool
    max_running: int
    step_time: _duration_pb2.Duration
    prefill_budget: int
    starts_seen: int
    step_model: StepCoefficients
    def __init__(self, sequence: _Optional[int] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., queued_prefill_tokens: _Optional[int] = ..., context_tokens: _Optional[int] = ..., kv_used_tokens: _Optional[int] = ..., kv_total_tokens: _Optional[int] = ..., step_time_ratio: _Optional[float] = ..., prefill_tokens_per_step: _Optional[float] = ..., output_tokens_per_second: _Optional[float] = ..., draining: _Optional[bool] = ..., max_running: _Optional[int] = ..., step_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., prefill_budget: _Optional[int] = ..., starts_seen: _Optional[int] = ..., step_model: _Optional[_Union[StepCoefficients, _Mapping]] = ...) -> None: ...

class StepCoefficients(_message.Message):
    __slots__ = ("base", "prefill", "decode", "context")
    BASE_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    base: float
    prefill: float
    decode: float
    context: float
    def __init__(self, base: _Optional[float] = ..., prefill: _Optional[float] = ..., decode: _Optional[float] = ..., context: _Optional[float] = ...) -> None: ...

class GoAway(_message.Message):
    __slots__ = ("time_left", "reason")
    TIME_LEFT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    time_left: _duration_pb2.Duration
    reason: str
    def __init__(self, time_left: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...
