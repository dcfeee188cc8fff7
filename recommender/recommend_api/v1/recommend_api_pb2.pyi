import datetime

from recommender.recommend_api.validate import validate_pb2 as _validate_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.rpc import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Source(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SOURCE_UNSPECIFIED: _ClassVar[Source]
    SOURCE_MODEL: _ClassVar[Source]
    SOURCE_FALLBACK: _ClassVar[Source]
    SOURCE_USER: _ClassVar[Source]

class FeatureType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FEATURE_TYPE_UNSPECIFIED: _ClassVar[FeatureType]
    FEATURE_TYPE_INT64: _ClassVar[FeatureType]
    FEATURE_TYPE_FLOAT: _ClassVar[FeatureType]
    FEATURE_TYPE_BOOL: _ClassVar[FeatureType]
    FEATURE_TYPE_STRING: _ClassVar[FeatureType]

class ModelRole(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_ROLE_UNSPECIFIED: _ClassVar[ModelRole]
    MODEL_ROLE_LIVE: _ClassVar[ModelRole]
    MODEL_ROLE_CANARY: _ClassVar[ModelRole]
    MODEL_ROLE_SHADOW: _ClassVar[ModelRole]
SOURCE_UNSPECIFIED: Source
SOURCE_MODEL: Source
SOURCE_FALLBACK: Source
SOURCE_USER: Source
FEATURE_TYPE_UNSPECIFIED: FeatureType
FEATURE_TYPE_INT64: FeatureType
FEATURE_TYPE_FLOAT: FeatureType
FEATURE_TYPE_BOOL: FeatureType
FEATURE_TYPE_STRING: FeatureType
MODEL_ROLE_UNSPECIFIED: ModelRole
MODEL_ROLE_LIVE: ModelRole
MODEL_ROLE_CANARY: ModelRole
MODEL_ROLE_SHADOW: ModelRole

class RecommendRequest(_message.Message):
    __slots__ = ("item_ids", "limit", "excluded_item_ids", "exclude_history", "candidate_item_ids", "min_score", "item_keys", "excluded_item_keys", "candidate_item_keys", "model", "routing_key", "user_key", "user_id", "features", "history_type_keys", "history_type_ids", "history_times", "filter", "filter_parameters", "boosts", "max_per")
    class FeaturesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: FeatureValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[FeatureValue, _Mapping]] = ...) -> None: ...
    class FilterParametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: FeatureValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[FeatureValue, _Mapping]] = ...) -> None: ...
    ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_HISTORY_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    MIN_SCORE_FIELD_NUMBER: _ClassVar[int]
    ITEM_KEYS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_ITEM_KEYS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_ITEM_KEYS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ROUTING_KEY_FIELD_NUMBER: _ClassVar[int]
    USER_KEY_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    HISTORY_TYPE_KEYS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_TYPE_IDS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_TIMES_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    FILTER_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    BOOSTS_FIELD_NUMBER: _ClassVar[int]
    MAX_PER_FIELD_NUMBER: _ClassVar[int]
    item_ids: _containers.RepeatedScalarFieldContainer[int]
    limit: int
    excluded_item_ids: _containers.RepeatedScalarFieldContainer[int]
    exclude_history: bool
    candidate_item_ids: _containers.RepeatedScalarFieldContainer[int]
    min_score: float
    item_keys: _containers.RepeatedScalarFieldContainer[str]
    excluded_item_keys: _containers.RepeatedScalarFieldContainer[str]
    candidate_item_keys: _containers.RepeatedScalarFieldContainer[str]
    model: str
    routing_key: str
    user_key: str
    user_id: int
    features: _containers.MessageMap[str, FeatureValue]
    history_type_keys: _containers.RepeatedScalarFieldContainer[str]
    history_type_ids: _containers.RepeatedScalarFieldContainer[int]
    history_times: _containers.RepeatedScalarFieldContainer[int]
    filter: str
    filter_parameters: _containers.MessageMap[str, FeatureValue]
    boosts: _containers.RepeatedCompositeFieldContainer[Boost]
    max_per: _containers.RepeatedCompositeFieldContainer[MaxPer]
    def __init__(self, item_ids: _Optional[_Iterable[int]] = ..., limit: _Optional[int] = ..., excluded_item_ids: _Optional[_Iterable[int]] = ..., exclude_history: _Optional[bool] = ..., candidate_item_ids: _Optional[_Iterable[int]] = ..., min_score: _Optional[float] = ..., item_keys: _Optional[_Iterable[str]] = ..., excluded_item_keys: _Optional[_Iterable[str]] = ..., candidate_item_keys: _Optional[_Iterable[str]] = ..., model: _Optional[str] = ..., routing_key: _Optional[str] = ..., user_key: _Optional[str] = ..., user_id: _Optional[int] = ..., features: _Optional[_Mapping[str, FeatureValue]] = ..., history_type_keys: _Optional[_Iterable[str]] = ..., history_type_ids: _Optional[_Iterable[int]] = ..., history_times: _Optional[_Iterable[int]] = ..., filter: _Optional[str] = ..., filter_parameters: _Optional[_Mapping[str, FeatureValue]] = ..., boosts: _Optional[_Iterable[_Union[Boost, _Mapping]]] = ..., max_per: _Optional[_Iterable[_Union[MaxPer, _Mapping]]] = ...) -> None: ...

class Boost(_message.Message):
    __slots__ = ("filter", "factor", "addend")
    FILTER_FIELD_NUMBER: _ClassVar[int]
    FACTOR_FIELD_NUMBER: _ClassVar[int]
    ADDEND_FIELD_NUMBER: _ClassVar[int]
    filter: str
    factor: float
    addend: float
    def __init__(self, filter: _Optional[str] = ..., factor: _Optional[float] = ..., addend: _Optional[float] = ...) -> None: ...

class MaxPer(_message.Message):
    __slots__ = ("attribute", "n")
    ATTRIBUTE_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    attribute: str
    n: int
    def __init__(self, attribute: _Optional[str] = ..., n: _Optional[int] = ...) -> None: ...

class FeatureValue(_message.Message):
    __slots__ = ("int64_value", "double_value", "string_value", "bool_value", "int64_list", "double_list", "string_list", "bool_list")
    INT64_VALUE_FIELD_NUMBER: _ClassVar[int]
    DOUBLE_VALUE_FIELD_NUMBER: _ClassVar[int]
    STRING_VALUE_FIELD_NUMBER: _ClassVar[int]
    BOOL_VALUE_FIELD_NUMBER: _ClassVar[int]
    INT64_LIST_FIELD_NUMBER: _ClassVar[int]
    DOUBLE_LIST_FIELD_NUMBER: _ClassVar[int]
    STRING_LIST_FIELD_NUMBER: _ClassVar[int]
    BOOL_LIST_FIELD_NUMBER: _ClassVar[int]
    int64_value: int
    double_value: float
    string_value: str
    bool_value: bool
    int64_list: Int64List
    double_list: DoubleList
    string_list: StringList
    bool_list: BoolList
    def __init__(self, int64_value: _Optional[int] = ..., double_value: _Optional[float] = ..., string_value: _Optional[str] = ..., bool_value: _Optional[bool] = ..., int64_list: _Optional[_Union[Int64List, _Mapping]] = ..., double_list: _Optional[_Union[DoubleList, _Mapping]] = ..., string_list: _Optional[_Union[StringList, _Mapping]] = ..., bool_list: _Optional[_Union[BoolList, _Mapping]] = ...) -> None: ...

class Int64List(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, values: _Optional[_Iterable[int]] = ...) -> None: ...

class DoubleList(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class StringList(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, values: _Optional[_Iterable[str]] = ...) -> None: ...

class BoolList(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[bool]
    def __init__(self, values: _Optional[_Iterable[bool]] = ...) -> None: ...

class RecommendResponse(_message.Message):
    __slots__ = ("item_ids", "scores", "model_version", "item_keys", "unknown_item_ids", "unknown_item_keys", "source", "request_id", "unknown_user", "ignored_inputs", "matching_items")
    ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    ITEM_KEYS_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_ITEM_KEYS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_USER_FIELD_NUMBER: _ClassVar[int]
    IGNORED_INPUTS_FIELD_NUMBER: _ClassVar[int]
    MATCHING_ITEMS_FIELD_NUMBER: _ClassVar[int]
    item_ids: _containers.RepeatedScalarFieldContainer[int]
    scores: _containers.RepeatedScalarFieldContainer[float]
    model_version: str
    item_keys: _containers.RepeatedScalarFieldContainer[str]
    unknown_item_ids: _containers.RepeatedScalarFieldContainer[int]
    unknown_item_keys: _containers.RepeatedScalarFieldContainer[str]
    source: Source
    request_id: str
    unknown_user: bool
    ignored_inputs: _containers.RepeatedScalarFieldContainer[str]
    matching_items: int
    def __init__(self, item_ids: _Optional[_Iterable[int]] = ..., scores: _Optional[_Iterable[float]] = ..., model_version: _Optional[str] = ..., item_keys: _Optional[_Iterable[str]] = ..., unknown_item_ids: _Optional[_Iterable[int]] = ..., unknown_item_keys: _Optional[_Iterable[str]] = ..., source: _Optional[_Union[Source, str]] = ..., request_id: _Optional[str] = ..., unknown_user: _Optional[bool] = ..., ignored_inputs: _Optional[_Iterable[str]] = ..., matching_items: _Optional[int] = ...) -> None: ...

class BatchRecommendRequest(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[RecommendRequest]
    def __init__(self, requests: _Optional[_Iterable[_Union[RecommendRequest, _Mapping]]] = ...) -> None: ...

class BatchRecommendResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[RecommendResult]
    def __init__(self, results: _Optional[_Iterable[_Union[RecommendResult, _Mapping]]] = ...) -> None: ...

class RecommendResult(_message.Message):
    __slots__ = ("response", "error")
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    response: RecommendResponse
    error: _status_pb2.Status
    def __init__(self, response: _Optional[_Union[RecommendResponse, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...

class StreamRecommendRequest(_message.Message):
    __slots__ = ("correlation_id", "request", "timeout_ms")
    CORRELATION_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    correlation_id: int
    request: RecommendRequest
    timeout_ms: int
    def __init__(self, correlation_id: _Optional[int] = ..., request: _Optional[_Union[RecommendRequest, _Mapping]] = ..., timeout_ms: _Optional[int] = ...) -> None: ...

class StreamRecommendResponse(_message.Message):
    __slots__ = ("correlation_id", "response", "error")
    CORRELATION_ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    correlation_id: int
    response: RecommendResponse
    error: _status_pb2.Status
    def __init__(self, correlation_id: _Optional[int] = ..., response: _Optional[_Union[RecommendResponse, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "version", "sha256", "items", "embedding_size", "default_limit", "max_limit", "longest_history", "vocabulary_size", "fallback_size", "execution_provider", "loaded_at", "aliases", "role", "reference", "source_failure", "refused_version", "refusal", "history_items", "users", "first_user", "has_user_keys", "features", "history_types", "has_history_type_keys", "takes_history_times", "first_history_type")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_SIZE_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_LIMIT_FIELD_NUMBER: _ClassVar[int]
    MAX_LIMIT_FIELD_NUMBER: _ClassVar[int]
    LONGEST_HISTORY_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_SIZE_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_SIZE_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_PROVIDER_FIELD_NUMBER: _ClassVar[int]
    LOADED_AT_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FAILURE_FIELD_NUMBER: _ClassVar[int]
    REFUSED_VERSION_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    HISTORY_ITEMS_FIELD_NUMBER: _ClassVar[int]
    USERS_FIELD_NUMBER: _ClassVar[int]
    FIRST_USER_FIELD_NUMBER: _ClassVar[int]
    HAS_USER_KEYS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    HISTORY_TYPES_FIELD_NUMBER: _ClassVar[int]
    HAS_HISTORY_TYPE_KEYS_FIELD_NUMBER: _ClassVar[int]
    TAKES_HISTORY_TIMES_FIELD_NUMBER: _ClassVar[int]
    FIRST_HISTORY_TYPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    sha256: str
    items: int
    embedding_size: int
    default_limit: int
    max_limit: int
    longest_history: int
    vocabulary_size: int
    fallback_size: int
    execution_provider: str
    loaded_at: _timestamp_pb2.Timestamp
    aliases: _containers.RepeatedScalarFieldContainer[str]
    role: ModelRole
    reference: str
    source_failure: str
    refused_version: str
    refusal: str
    history_items: int
    users: int
    first_user: int
    has_user_keys: bool
    features: _containers.RepeatedCompositeFieldContainer[FeatureInput]
    history_types: int
    has_history_type_keys: bool
    takes_history_times: bool
    first_history_type: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., sha256: _Optional[str] = ..., items: _Optional[int] = ..., embedding_size: _Optional[int] = ..., default_limit: _Optional[int] = ..., max_limit: _Optional[int] = ..., longest_history: _Optional[int] = ..., vocabulary_size: _Optional[int] = ..., fallback_size: _Optional[int] = ..., execution_provider: _Optional[str] = ..., loaded_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., aliases: _Optional[_Iterable[str]] = ..., role: _Optional[_Union[ModelRole, str]] = ..., reference: _Optional[str] = ..., source_failure: _Optional[str] = ..., refused_version: _Optional[str] = ..., refusal: _Optional[str] = ..., history_items: _Optional[int] = ..., users: _Optional[int] = ..., first_user: _Optional[int] = ..., has_user_keys: _Optional[bool] = ..., features: _Optional[_Iterable[_Union[FeatureInput, _Mapping]]] = ..., history_types: _Optional[int] = ..., has_history_type_keys: _Optional[bool] = ..., takes_history_times: _Optional[bool] = ..., first_history_type: _Optional[int] = ...) -> None: ...

class FeatureInput(_message.Message):
    __slots__ = ("name", "type", "width", "has_default")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HAS_DEFAULT_FIELD_NUMBER: _ClassVar[int]
    name: str
    type: FeatureType
    width: int
    has_default: bool
    def __init__(self, name: _Optional[str] = ..., type: _Optional[_Union[FeatureType, str]] = ..., width: _Optional[int] = ..., has_default: _Optional[bool] = ...) -> None: ...
