from recommender.recommend_api.validate import validate_pb2 as _validate_pb2
from recommender.recommend_api.v1 import recommend_api_pb2 as _recommend_api_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NewItemState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NEW_ITEM_STATE_UNSPECIFIED: _ClassVar[NewItemState]
    NEW_ITEM_STATE_RANKED: _ClassVar[NewItemState]
    NEW_ITEM_STATE_WAITING: _ClassVar[NewItemState]
    NEW_ITEM_STATE_LEFT_BEHIND: _ClassVar[NewItemState]
    NEW_ITEM_STATE_IN_CATALOGUE: _ClassVar[NewItemState]
NEW_ITEM_STATE_UNSPECIFIED: NewItemState
NEW_ITEM_STATE_RANKED: NewItemState
NEW_ITEM_STATE_WAITING: NewItemState
NEW_ITEM_STATE_LEFT_BEHIND: NewItemState
NEW_ITEM_STATE_IN_CATALOGUE: NewItemState

class HideItemsRequest(_message.Message):
    __slots__ = ("item_keys", "item_ids", "model")
    ITEM_KEYS_FIELD_NUMBER: _ClassVar[int]
    ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    item_keys: _containers.RepeatedScalarFieldContainer[str]
    item_ids: _containers.RepeatedScalarFieldContainer[int]
    model: str
    def __init__(self, item_keys: _Optional[_Iterable[str]] = ..., item_ids: _Optional[_Iterable[int]] = ..., model: _Optional[str] = ...) -> None: ...

class HideItemsResponse(_message.Message):
    __slots__ = ("changed", "hidden", "unknown_item_keys")
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_ITEM_KEYS_FIELD_NUMBER: _ClassVar[int]
    changed: int
    hidden: int
    unknown_item_keys: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, changed: _Optional[int] = ..., hidden: _Optional[int] = ..., unknown_item_keys: _Optional[_Iterable[str]] = ...) -> None: ...

class ShowItemsRequest(_message.Message):
    __slots__ = ("item_keys", "item_ids", "model")
    ITEM_KEYS_FIELD_NUMBER: _ClassVar[int]
    ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    item_keys: _containers.RepeatedScalarFieldContainer[str]
    item_ids: _containers.RepeatedScalarFieldContainer[int]
    model: str
    def __init__(self, item_keys: _Optional[_Iterable[str]] = ..., item_ids: _Optional[_Iterable[int]] = ..., model: _Optional[str] = ...) -> None: ...

class ShowItemsResponse(_message.Message):
    __slots__ = ("changed", "hidden")
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_FIELD_NUMBER: _ClassVar[int]
    changed: int
    hidden: int
    def __init__(self, changed: _Optional[int] = ..., hidden: _Optional[int] = ...) -> None: ...

class ListHiddenItemsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListHiddenItemsResponse(_message.Message):
    __slots__ = ("items", "next_page_token")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[HiddenItem]
    next_page_token: str
    def __init__(self, items: _Optional[_Iterable[_Union[HiddenItem, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class HiddenItem(_message.Message):
    __slots__ = ("item_key", "item_id", "model")
    ITEM_KEY_FIELD_NUMBER: _ClassVar[int]
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    item_key: str
    item_id: int
    model: str
    def __init__(self, item_key: _Optional[str] = ..., item_id: _Optional[int] = ..., model: _Optional[str] = ...) -> None: ...

class UpsertItemsRequest(_message.Message):
    __slots__ = ("model", "items")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    model: str
    items: _containers.RepeatedCompositeFieldContainer[NewItem]
    def __init__(self, model: _Optional[str] = ..., items: _Optional[_Iterable[_Union[NewItem, _Mapping]]] = ...) -> None: ...

class NewItem(_message.Message):
    __slots__ = ("key", "vector", "bias", "attributes")
    class AttributesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _recommend_api_pb2.FeatureValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_recommend_api_pb2.FeatureValue, _Mapping]] = ...) -> None: ...
    KEY_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    BIAS_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    key: str
    vector: _containers.RepeatedScalarFieldContainer[float]
    bias: float
    attributes: _containers.MessageMap[str, _recommend_api_pb2.FeatureValue]
    def __init__(self, key: _Optional[str] = ..., vector: _Optional[_Iterable[float]] = ..., bias: _Optional[float] = ..., attributes: _Optional[_Mapping[str, _recommend_api_pb2.FeatureValue]] = ...) -> None: ...

class UpsertItemsResponse(_message.Message):
    __slots__ = ("added", "replaced", "total", "waiting", "dropped")
    ADDED_FIELD_NUMBER: _ClassVar[int]
    REPLACED_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    added: int
    replaced: int
    total: int
    waiting: bool
    dropped: int
    def __init__(self, added: _Optional[int] = ..., replaced: _Optional[int] = ..., total: _Optional[int] = ..., waiting: _Optional[bool] = ..., dropped: _Optional[int] = ...) -> None: ...

class RemoveItemsRequest(_message.Message):
    __slots__ = ("item_keys", "left_behind", "model")
    ITEM_KEYS_FIELD_NUMBER: _ClassVar[int]
    LEFT_BEHIND_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    item_keys: _containers.RepeatedScalarFieldContainer[str]
    left_behind: bool
    model: str
    def __init__(self, item_keys: _Optional[_Iterable[str]] = ..., left_behind: _Optional[bool] = ..., model: _Optional[str] = ...) -> None: ...

class RemoveItemsResponse(_message.Message):
    __slots__ = ("removed", "total")
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    removed: int
    total: int
    def __init__(self, removed: _Optional[int] = ..., total: _Optional[int] = ...) -> None: ...

class ListNewItemsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListNewItemsResponse(_message.Message):
    __slots__ = ("items", "next_page_token", "total", "limit", "counts")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[ListedItem]
    next_page_token: str
    total: int
    limit: int
    counts: _containers.RepeatedCompositeFieldContainer[StateCount]
    def __init__(self, items: _Optional[_Iterable[_Union[ListedItem, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., total: _Optional[int] = ..., limit: _Optional[int] = ..., counts: _Optional[_Iterable[_Union[StateCount, _Mapping]]] = ...) -> None: ...

class ListedItem(_message.Message):
    __slots__ = ("key", "model", "state")
    KEY_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    key: str
    model: str
    state: NewItemState
    def __init__(self, key: _Optional[str] = ..., model: _Optional[str] = ..., state: _Optional[_Union[NewItemState, str]] = ...) -> None: ...

class StateCount(_message.Message):
    __slots__ = ("state", "items")
    STATE_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    state: NewItemState
    items: int
    def __init__(self, state: _Optional[_Union[NewItemState, str]] = ..., items: _Optional[int] = ...) -> None: ...
