from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KIND_UNSPECIFIED: _ClassVar[Kind]
    EVENT: _ClassVar[Kind]
    SERVICE_CHANGE: _ClassVar[Kind]
    ENDPOINTS_CHANGE: _ClassVar[Kind]
    GAP: _ClassVar[Kind]

class Enrichment(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENRICHMENT_UNSPECIFIED: _ClassVar[Enrichment]
    FRESH: _ClassVar[Enrichment]
    TOMBSTONE: _ClassVar[Enrichment]
    MISSING: _ClassVar[Enrichment]
KIND_UNSPECIFIED: Kind
EVENT: Kind
SERVICE_CHANGE: Kind
ENDPOINTS_CHANGE: Kind
GAP: Kind
ENRICHMENT_UNSPECIFIED: Enrichment
FRESH: Enrichment
TOMBSTONE: Enrichment
MISSING: Enrichment

class Record(_message.Message):
    __slots__ = ("kind", "cluster", "uid", "resource_version", "time_us", "observed_time_us", "namespace", "name", "type", "reason", "message", "action", "first_time_us", "last_time_us", "event_time_us", "count", "occurrences", "component", "host", "reporting_controller", "reporting_instance", "involved", "related", "labels", "annotations", "owners", "node", "node_addresses", "pod", "services", "enrichment", "snapshot_time_us", "service_change", "endpoints_change", "gap", "found_by_list")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class AnnotationsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    KIND_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_VERSION_FIELD_NUMBER: _ClassVar[int]
    TIME_US_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_TIME_US_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    FIRST_TIME_US_FIELD_NUMBER: _ClassVar[int]
    LAST_TIME_US_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_US_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    OCCURRENCES_FIELD_NUMBER: _ClassVar[int]
    COMPONENT_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    REPORTING_CONTROLLER_FIELD_NUMBER: _ClassVar[int]
    REPORTING_INSTANCE_FIELD_NUMBER: _ClassVar[int]
    INVOLVED_FIELD_NUMBER: _ClassVar[int]
    RELATED_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    ANNOTATIONS_FIELD_NUMBER: _ClassVar[int]
    OWNERS_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    NODE_ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    POD_FIELD_NUMBER: _ClassVar[int]
    SERVICES_FIELD_NUMBER: _ClassVar[int]
    ENRICHMENT_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_TIME_US_FIELD_NUMBER: _ClassVar[int]
    SERVICE_CHANGE_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_CHANGE_FIELD_NUMBER: _ClassVar[int]
    GAP_FIELD_NUMBER: _ClassVar[int]
    FOUND_BY_LIST_FIELD_NUMBER: _ClassVar[int]
    kind: Kind
    cluster: str
    uid: str
    resource_version: str
    time_us: int
    observed_time_us: int
    namespace: str
    name: str
    type: str
    reason: str
    message: str
    action: str
    first_time_us: int
    last_time_us: int
    event_time_us: int
    count: int
    occurrences: int
    component: str
    host: str
    reporting_controller: str
    reporting_instance: str
    involved: Reference
    related: Reference
    labels: _containers.ScalarMap[str, str]
    annotations: _containers.ScalarMap[str, str]
    owners: _containers.RepeatedCompositeFieldContainer[Owner]
    node: str
    node_addresses: _containers.RepeatedCompositeFieldContainer[Address]
    pod: Pod
    services: _containers.RepeatedCompositeFieldContainer[ServiceRef]
    enrichment: Enrichment
    snapshot_time_us: int
    service_change: ServiceChange
    endpoints_change: EndpointsChange
    gap: Gap
    found_by_list: bool
    def __init__(self, kind: _Optional[_Union[Kind, str]] = ..., cluster: _Optional[str] = ..., uid: _Optional[str] = ..., resource_version: _Optional[str] = ..., time_us: _Optional[int] = ..., observed_time_us: _Optional[int] = ..., namespace: _Optional[str] = ..., name: _Optional[str] = ..., type: _Optional[str] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., action: _Optional[str] = ..., first_time_us: _Optional[int] = ..., last_time_us: _Optional[int] = ..., event_time_us: _Optional[int] = ..., count: _Optional[int] = ..., occurrences: _Optional[int] = ..., component: _Optional[str] = ..., host: _Optional[str] = ..., reporting_controller: _Optional[str] = ..., reporting_instance: _Optional[str] = ..., involved: _Optional[_Union[Reference, _Mapping]] = ..., related: _Optional[_Union[Reference, _Mapping]] = ..., labels: _Optional[_Mapping[str, str]] = ..., annotations: _Optional[_Mapping[str, str]] = ..., owners: _Optional[_Iterable[_Union[Owner, _Mapping]]] = ..., node: _Optional[str] = ..., node_addresses: _Optional[_Iterable[_Union[Address, _Mapping]]] = ..., pod: _Optional[_Union[Pod, _Mapping]] = ..., services: _Optional[_Iterable[_Union[ServiceRef, _Mapping]]] = ..., enrichment: _Optional[_Union[Enrichment, str]] = ..., snapshot_time_us: _Optional[int] = ..., service_change: _Optional[_Union[ServiceChange, _Mapping]] = ..., endpoints_change: _Optional[_Union[EndpointsChange, _Mapping]] = ..., gap: _Optional[_Union[Gap, _Mapping]] = ..., found_by_list: _Optional[bool] = ...) -> None: ...

class Reference(_message.Message):
    __slots__ = ("kind", "namespace", "name", "uid", "api_version", "resource_version", "field_path")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    API_VERSION_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_VERSION_FIELD_NUMBER: _ClassVar[int]
    FIELD_PATH_FIELD_NUMBER: _ClassVar[int]
    kind: str
    namespace: str
    name: str
    uid: str
    api_version: str
    resource_version: str
    field_path: str
    def __init__(self, kind: _Optional[str] = ..., namespace: _Optional[str] = ..., name: _Optional[str] = ..., uid: _Optional[str] = ..., api_version: _Optional[str] = ..., resource_version: _Optional[str] = ..., field_path: _Optional[str] = ...) -> None: ...

class Owner(_message.Message):
    __slots__ = ("kind", "name", "uid", "api_version")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    API_VERSION_FIELD_NUMBER: _ClassVar[int]
    kind: str
    name: str
    uid: str
    api_version: str
    def __init__(self, kind: _Optional[str] = ..., name: _Optional[str] = ..., uid: _Optional[str] = ..., api_version: _Optional[str] = ...) -> None: ...

class Address(_message.Message):
    __slots__ = ("type", "address")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    type: str
    address: str
    def __init__(self, type: _Optional[str] = ..., address: _Optional[str] = ...) -> None: ...

class Pod(_message.Message):
    __slots__ = ("uid", "name", "namespace", "ip", "host_ip", "start_time_us", "phase", "node", "ready")
    UID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    IP_FIELD_NUMBER: _ClassVar[int]
    HOST_IP_FIELD_NUMBER: _ClassVar[int]
    START_TIME_US_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    uid: str
    name: str
    namespace: str
    ip: str
    host_ip: str
    start_time_us: int
    phase: str
    node: str
    ready: bool
    def __init__(self, uid: _Optional[str] = ..., name: _Optional[str] = ..., namespace: _Optional[str] = ..., ip: _Optional[str] = ..., host_ip: _Optional[str] = ..., start_time_us: _Optional[int] = ..., phase: _Optional[str] = ..., node: _Optional[str] = ..., ready: _Optional[bool] = ...) -> None: ...

class ServiceRef(_message.Message):
    __slots__ = ("namespace", "name", "uid", "how")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    HOW_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    name: str
    uid: str
    how: str
    def __init__(self, namespace: _Optional[str] = ..., name: _Optional[str] = ..., uid: _Optional[str] = ..., how: _Optional[str] = ...) -> None: ...

class Port(_message.Message):
    __slots__ = ("name", "protocol", "port", "target_port", "node_port")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    TARGET_PORT_FIELD_NUMBER: _ClassVar[int]
    NODE_PORT_FIELD_NUMBER: _ClassVar[int]
    name: str
    protocol: str
    port: int
    target_port: str
    node_port: int
    def __init__(self, name: _Optional[str] = ..., protocol: _Optional[str] = ..., port: _Optional[int] = ..., target_port: _Optional[str] = ..., node_port: _Optional[int] = ...) -> None: ...

class ServiceState(_message.Message):
    __slots__ = ("type", "cluster_ip", "external_name", "selector", "ports", "labels")
    class SelectorEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    TYPE_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_IP_FIELD_NUMBER: _ClassVar[int]
    EXTERNAL_NAME_FIELD_NUMBER: _ClassVar[int]
    SELECTOR_FIELD_NUMBER: _ClassVar[int]
    PORTS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    type: str
    cluster_ip: str
    external_name: str
    selector: _containers.ScalarMap[str, str]
    ports: _containers.RepeatedCompositeFieldContainer[Port]
    labels: _containers.ScalarMap[str, str]
    def __init__(self, type: _Optional[str] = ..., cluster_ip: _Optional[str] = ..., external_name: _Optional[str] = ..., selector: _Optional[_Mapping[str, str]] = ..., ports: _Optional[_Iterable[_Union[Port, _Mapping]]] = ..., labels: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ServiceChange(_message.Message):
    __slots__ = ("change", "changed", "before", "after", "pods")
    class Change(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        CHANGE_UNSPECIFIED: _ClassVar[ServiceChange.Change]
        LISTED: _ClassVar[ServiceChange.Change]
        ADDED: _ClassVar[ServiceChange.Change]
        UPDATED: _ClassVar[ServiceChange.Change]
        DELETED: _ClassVar[ServiceChange.Change]
    CHANGE_UNSPECIFIED: ServiceChange.Change
    LISTED: ServiceChange.Change
    ADDED: ServiceChange.Change
    UPDATED: ServiceChange.Change
    DELETED: ServiceChange.Change
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    PODS_FIELD_NUMBER: _ClassVar[int]
    change: ServiceChange.Change
    changed: _containers.RepeatedScalarFieldContainer[str]
    before: ServiceState
    after: ServiceState
    pods: _containers.RepeatedCompositeFieldContainer[Pod]
    def __init__(self, change: _Optional[_Union[ServiceChange.Change, str]] = ..., changed: _Optional[_Iterable[str]] = ..., before: _Optional[_Union[ServiceState, _Mapping]] = ..., after: _Optional[_Union[ServiceState, _Mapping]] = ..., pods: _Optional[_Iterable[_Union[Pod, _Mapping]]] = ...) -> None: ...

class EndpointsChange(_message.Message):
    __slots__ = ("service", "joined", "left", "became_ready", "became_unready", "former_service", "ready", "total")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    JOINED_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    BECAME_READY_FIELD_NUMBER: _ClassVar[int]
    BECAME_UNREADY_FIELD_NUMBER: _ClassVar[int]
    FORMER_SERVICE_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    service: str
    joined: _containers.RepeatedCompositeFieldContainer[EndpointRef]
    left: _containers.RepeatedCompositeFieldContainer[EndpointRef]
    became_ready: _containers.RepeatedCompositeFieldContainer[EndpointRef]
    became_unready: _containers.RepeatedCompositeFieldContainer[EndpointRef]
    former_service: str
    ready: int
    total: int
    def __init__(self, service: _Optional[str] = ..., joined: _Optional[_Iterable[_Union[EndpointRef, _Mapping]]] = ..., left: _Optional[_Iterable[_Union[EndpointRef, _Mapping]]] = ..., became_ready: _Optional[_Iterable[_Union[EndpointRef, _Mapping]]] = ..., became_unready: _Optional[_Iterable[_Union[EndpointRef, _Mapping]]] = ..., former_service: _Optional[str] = ..., ready: _Optional[int] = ..., total: _Optional[int] = ...) -> None: ...

class EndpointRef(_message.Message):
    __slots__ = ("addresses", "kind", "name", "uid", "node", "ready")
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    addresses: _containers.RepeatedScalarFieldContainer[str]
    kind: str
    name: str
    uid: str
    node: str
    ready: bool
    def __init__(self, addresses: _Optional[_Iterable[str]] = ..., kind: _Optional[str] = ..., name: _Optional[str] = ..., uid: _Optional[str] = ..., node: _Optional[str] = ..., ready: _Optional[bool] = ...) -> None: ...

class Gap(_message.Message):
    __slots__ = ("from_us", "to_us", "why", "resource", "namespace", "from_version", "to_version")
    FROM_US_FIELD_NUMBER: _ClassVar[int]
    TO_US_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    FROM_VERSION_FIELD_NUMBER: _ClassVar[int]
    TO_VERSION_FIELD_NUMBER: _ClassVar[int]
    from_us: int
    to_us: int
    why: str
    resource: str
    namespace: str
    from_version: str
    to_version: str
    def __init__(self, from_us: _Optional[int] = ..., to_us: _Optional[int] = ..., why: _Optional[str] = ..., resource: _Optional[str] = ..., namespace: _Optional[str] = ..., from_version: _Optional[str] = ..., to_version: _Optional[str] = ...) -> None: ...
