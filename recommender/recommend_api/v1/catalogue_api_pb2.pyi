from recommender.recommend_api.validate import validate_pb2 as _validate_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

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
