import datetime

from anabranch.v1 import generation_pb2 as _generation_pb2
from anabranch.v1 import options_pb2 as _options_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ServedState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SERVED_STATE_UNSPECIFIED: _ClassVar[ServedState]
    SERVED_STATE_SERVING: _ClassVar[ServedState]
    SERVED_STATE_DRAINING: _ClassVar[ServedState]
    SERVED_STATE_ASLEEP: _ClassVar[ServedState]
SERVED_STATE_UNSPECIFIED: ServedState
SERVED_STATE_SERVING: ServedState
SERVED_STATE_DRAINING: ServedState
SERVED_STATE_ASLEEP: ServedState

class ListServedModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListServedModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ServedModel]
    def __init__(self, models: _Optional[_Iterable[_Union[ServedModel, _Mapping]]] = ...) -> None: ...

class ServedModel(_message.Message):
    __slots__ = ("model", "state", "base", "in_flight", "sleep_level", "loaded_at_run_time")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    SLEEP_LEVEL_FIELD_NUMBER: _ClassVar[int]
    LOADED_AT_RUN_TIME_FIELD_NUMBER: _ClassVar[int]
    model: _generation_pb2.ModelInfo
    state: ServedState
    base: str
    in_flight: int
    sleep_level: int
    loaded_at_run_time: bool
    def __init__(self, model: _Optional[_Union[_generation_pb2.ModelInfo, _Mapping]] = ..., state: _Optional[_Union[ServedState, str]] = ..., base: _Optional[str] = ..., in_flight: _Optional[int] = ..., sleep_level: _Optional[int] = ..., loaded_at_run_time: _Optional[bool] = ...) -> None: ...

class LoadModelRequest(_message.Message):
    __slots__ = ("name", "source", "aliases", "options", "drain_timeout")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    DRAIN_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    name: str
    source: str
    aliases: _containers.RepeatedScalarFieldContainer[str]
    options: LoadOptions
    drain_timeout: _duration_pb2.Duration
    def __init__(self, name: _Optional[str] = ..., source: _Optional[str] = ..., aliases: _Optional[_Iterable[str]] = ..., options: _Optional[_Union[LoadOptions, _Mapping]] = ..., drain_timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class LoadOptions(_message.Message):
    __slots__ = ("gpu_memory_utilization", "max_model_len", "max_num_seqs", "dtype", "quantization", "vllm_args", "cpu_kv_cache_gib", "max_adapters", "tool_parser", "reasoning_parser")
    GPU_MEMORY_UTILIZATION_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_SEQS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    VLLM_ARGS_FIELD_NUMBER: _ClassVar[int]
    CPU_KV_CACHE_GIB_FIELD_NUMBER: _ClassVar[int]
    MAX_ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    TOOL_PARSER_FIELD_NUMBER: _ClassVar[int]
    REASONING_PARSER_FIELD_NUMBER: _ClassVar[int]
    gpu_memory_utilization: float
    max_model_len: int
    max_num_seqs: int
    dtype: str
    quantization: str
    vllm_args: str
    cpu_kv_cache_gib: int
    max_adapters: int
    tool_parser: str
    reasoning_parser: str
    def __init__(self, gpu_memory_utilization: _Optional[float] = ..., max_model_len: _Optional[int] = ..., max_num_seqs: _Optional[int] = ..., dtype: _Optional[str] = ..., quantization: _Optional[str] = ..., vllm_args: _Optional[str] = ..., cpu_kv_cache_gib: _Optional[int] = ..., max_adapters: _Optional[int] = ..., tool_parser: _Optional[str] = ..., reasoning_parser: _Optional[str] = ...) -> None: ...

class LoadModelResponse(_message.Message):
    __slots__ = ("phase", "elapsed", "detail", "in_flight", "model", "cut_off")
    class Phase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        PHASE_UNSPECIFIED: _ClassVar[LoadModelResponse.Phase]
        PHASE_CHECKING: _ClassVar[LoadModelResponse.Phase]
        PHASE_LOADING: _ClassVar[LoadModelResponse.Phase]
        PHASE_SERVING: _ClassVar[LoadModelResponse.Phase]
        PHASE_DRAINING: _ClassVar[LoadModelResponse.Phase]
        PHASE_DONE: _ClassVar[LoadModelResponse.Phase]
    PHASE_UNSPECIFIED: LoadModelResponse.Phase
    PHASE_CHECKING: LoadModelResponse.Phase
    PHASE_LOADING: LoadModelResponse.Phase
    PHASE_SERVING: LoadModelResponse.Phase
    PHASE_DRAINING: LoadModelResponse.Phase
    PHASE_DONE: LoadModelResponse.Phase
    PHASE_FIELD_NUMBER: _ClassVar[int]
    ELAPSED_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CUT_OFF_FIELD_NUMBER: _ClassVar[int]
    phase: LoadModelResponse.Phase
    elapsed: _duration_pb2.Duration
    detail: str
    in_flight: int
    model: ServedModel
    cut_off: int
    def __init__(self, phase: _Optional[_Union[LoadModelResponse.Phase, str]] = ..., elapsed: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., detail: _Optional[str] = ..., in_flight: _Optional[int] = ..., model: _Optional[_Union[ServedModel, _Mapping]] = ..., cut_off: _Optional[int] = ...) -> None: ...

class UnloadModelRequest(_message.Message):
    __slots__ = ("name", "drain_timeout", "allow_last")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DRAIN_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    ALLOW_LAST_FIELD_NUMBER: _ClassVar[int]
    name: str
    drain_timeout: _duration_pb2.Duration
    allow_last: bool
    def __init__(self, name: _Optional[str] = ..., drain_timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., allow_last: _Optional[bool] = ...) -> None: ...

class UnloadModelResponse(_message.Message):
    __slots__ = ("cut_off",)
    CUT_OFF_FIELD_NUMBER: _ClassVar[int]
    cut_off: int
    def __init__(self, cut_off: _Optional[int] = ...) -> None: ...

class LoadAdapterRequest(_message.Message):
    __slots__ = ("base", "name", "source", "drain_timeout")
    BASE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    DRAIN_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    base: str
    name: str
    source: str
    drain_timeout: _duration_pb2.Duration
    def __init__(self, base: _Optional[str] = ..., name: _Optional[str] = ..., source: _Optional[str] = ..., drain_timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class LoadAdapterResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: ServedModel
    def __init__(self, model: _Optional[_Union[ServedModel, _Mapping]] = ...) -> None: ...

class UnloadAdapterRequest(_message.Message):
    __slots__ = ("base", "name", "drain_timeout")
    BASE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DRAIN_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    base: str
    name: str
    drain_timeout: _duration_pb2.Duration
    def __init__(self, base: _Optional[str] = ..., name: _Optional[str] = ..., drain_timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class UnloadAdapterResponse(_message.Message):
    __slots__ = ("cut_off",)
    CUT_OFF_FIELD_NUMBER: _ClassVar[int]
    cut_off: int
    def __init__(self, cut_off: _Optional[int] = ...) -> None: ...

class SleepRequest(_message.Message):
    __slots__ = ("name", "level", "drain_timeout")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    DRAIN_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    name: str
    level: int
    drain_timeout: _duration_pb2.Duration
    def __init__(self, name: _Optional[str] = ..., level: _Optional[int] = ..., drain_timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class SleepResponse(_message.Message):
    __slots__ = ("model", "cut_off")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CUT_OFF_FIELD_NUMBER: _ClassVar[int]
    model: ServedModel
    cut_off: int
    def __init__(self, model: _Optional[_Union[ServedModel, _Mapping]] = ..., cut_off: _Optional[int] = ...) -> None: ...

class WakeRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class WakeResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: ServedModel
    def __init__(self, model: _Optional[_Union[ServedModel, _Mapping]] = ...) -> None: ...
