//! The table of everything that can be asked.
//!
//! One row is one endpoint: its name (the same word is the handler, the client call and the audit record's action),
//! method, path, who may, in which mode it answers, what goes in and what comes out, and a sentence. The router, the
//! OpenAPI document, the client and the tests that walk all endpoints are made from this table and from nothing else.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::marker::PhantomData;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;
use uuid::Uuid;

use crate::hosts::Host;
use crate::ids::TaskId;
use crate::images::{Image, ImageCreate};
use crate::install::{InstallRequest, InstallStatus};
use crate::networks::{Network, NetworkCreate};
use crate::system::{Health, LogLine, Mode, NetworkSettings, PowerRequest, System};
use crate::tasks::Task;
use crate::users::{
    AuditRecord, Role, SessionCreate, SetupRequest, SetupStatus, Token, TokenCreate, TokenCreated,
    User, UserCreate,
};
use crate::vms::{Vm, VmCreate, VmUpdate};
use crate::volumes::{Volume, VolumeCreate, VolumeUpdate};

/// What every path but `/metrics` begins with.
pub const BASE: &str = "/api/v1";
/// Largest JSON body of a request: the longest VM has 16 disks, 16 NICs and 2 KiB of command line.
pub const JSON_LEN_MAX: usize = 256 * 1024;
/// Longest `?wait=`, in seconds.
pub const WAIT_SECONDS_MAX: u64 = 60;
/// Request header: the same key with the same request is done once. 1 to [`IDEMPOTENCY_KEY_LEN_MAX`] visible ASCII characters.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Longest idempotency key.
pub const IDEMPOTENCY_KEY_LEN_MAX: usize = 128;
/// Reply header: the revision that this reply reflects, or that this write made.
pub const REVISION: &str = "lqx-revision";
/// Reply header: the request's id, as in errors, log and audit records.
pub const REQUEST_ID: &str = "lqx-request-id";

/// The methods we use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    /// Reads.
    Get,
    /// Makes, or does.
    Post,
    /// Replaces.
    Put,
    /// Changes some of it.
    Patch,
    /// Removes.
    Delete,
}

impl Method {
    /// As on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }
}

/// Who may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anybody who reaches the port.
    Public,
    /// A caller of this role or a higher one.
    Role(Role),
}

/// When it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Modes {
    /// Always.
    Any,
    /// Only on an installed system.
    Run,
    /// Only on a machine booted from a medium.
    Install,
}

impl Modes {
    /// Whether it answers in `mode`.
    pub fn include(self, mode: Mode) -> bool {
        match self {
            Self::Any => true,
            Self::Run => mode == Mode::Run,
            Self::Install => mode == Mode::Install,
        }
    }
}

/// A query parameter; all are whole numbers so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Query {
    /// Its name.
    pub name: &'static str,
    /// What it does.
    pub doc: &'static str,
}

const WAIT: Query = Query {
    name: "wait",
    doc: "Answer when the task has ended, at the latest after so many seconds (at most 60).",
};
const SINCE_REVISION: Query = Query {
    name: "since",
    doc: "Only changes after this revision; `Last-Event-ID` says the same and goes first. Default: from now on.",
};
const SINCE_LINE: Query = Query {
    name: "since",
    doc: "Only lines after this `seq`.",
};
const LIMIT: Query = Query {
    name: "limit",
    doc: "At most so many, the newest; 1 to 1000, default 100.",
};
/// On every read of agreed state.
pub const AT_LEAST: Query = Query {
    name: "at_least",
    doc: "Answer only once this host has seen that revision; `unavailable` when that takes more than ten seconds.",
};

/// What a body is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyKind {
    /// Nothing.
    None,
    /// JSON.
    Json,
    /// Raw bytes of any length.
    Octets,
    /// Plain text.
    Text,
    /// Server-sent events, each carrying one [`crate::events::Event`].
    Events,
    /// An upgrade to a WebSocket that carries raw bytes in binary messages.
    WebSocket,
}

/// Component schemas by name.
pub type Schemas = BTreeMap<String, RefOr<Schema>>;

/// A marker for what a body holds.
pub trait Body {
    /// What it is made of.
    const KIND: BodyKind;
    /// Registers the schemas it needs; its own schema's name, if it has one.
    fn schema(_all: &mut Schemas) -> Option<Cow<'static, str>> {
        None
    }
}

/// A body that the typed client sends.
pub trait RequestBody: Body {
    /// What the caller gives.
    type Value;
    /// As bytes; `None` when there is no body.
    fn encode(value: &Self::Value) -> Result<Option<Vec<u8>>, serde_json::Error>;
}

/// A body that the typed client receives whole.
pub trait ReplyBody: Body {
    /// What the caller gets.
    type Value;
    /// From bytes.
    fn decode(bytes: &[u8]) -> Result<Self::Value, serde_json::Error>;
}

/// No body.
#[derive(Debug)]
pub struct NoBody;
/// A JSON body.
#[derive(Debug)]
pub struct Json<T>(PhantomData<T>);
/// A JSON body: a [`List`].
#[derive(Debug)]
pub struct JsonList<T>(PhantomData<T>);
/// A JSON body: [`Accepted`].
#[derive(Debug)]
pub struct JsonAccepted<T>(PhantomData<T>);
/// Raw bytes.
#[derive(Debug)]
pub struct Octets;
/// Plain text.
#[derive(Debug)]
pub struct Text;
/// Server-sent events.
#[derive(Debug)]
pub struct EventStream;
/// A WebSocket.
#[derive(Debug)]
pub struct WebSocket;

impl Body for NoBody {
    const KIND: BodyKind = BodyKind::None;
}
impl Body for Octets {
    const KIND: BodyKind = BodyKind::Octets;
}
impl Body for Text {
    const KIND: BodyKind = BodyKind::Text;
}
impl Body for EventStream {
    const KIND: BodyKind = BodyKind::Events;
    fn schema(all: &mut Schemas) -> Option<Cow<'static, str>> {
        Json::<crate::events::Event>::schema(all)
    }
}
impl Body for WebSocket {
    const KIND: BodyKind = BodyKind::WebSocket;
}
impl<T: ToSchema> Body for Json<T> {
    const KIND: BodyKind = BodyKind::Json;
    fn schema(all: &mut Schemas) -> Option<Cow<'static, str>> {
        let mut needed = Vec::new();
        T::schemas(&mut needed);
        all.extend(needed);
        let name = component_name(std::any::type_name::<T>());
        all.insert(name.clone(), T::schema());
        Some(name.into())
    }
}

impl<T: ToSchema> Body for JsonList<T> {
    const KIND: BodyKind = BodyKind::Json;
    fn schema(all: &mut Schemas) -> Option<Cow<'static, str>> {
        Json::<T>::schema(all);
        Json::<List<T>>::schema(all)
    }
}
impl<T: ToSchema> Body for JsonAccepted<T> {
    const KIND: BodyKind = BodyKind::Json;
    fn schema(all: &mut Schemas) -> Option<Cow<'static, str>> {
        Json::<T>::schema(all);
        Json::<Accepted<T>>::schema(all)
    }
}

/// `api::endpoints::List<api::vms::Vm>` is `VmList` in the document.
fn component_name(type_name: &str) -> String {
    let words = type_name.split(['<', '>']).filter(|word| !word.is_empty());
    words
        .rev()
        .filter_map(|word| word.rsplit("::").next())
        .collect()
}

impl RequestBody for NoBody {
    type Value = ();
    fn encode((): &()) -> Result<Option<Vec<u8>>, serde_json::Error> {
        Ok(None)
    }
}
impl<T: ToSchema + Serialize> RequestBody for Json<T> {
    type Value = T;
    fn encode(value: &T) -> Result<Option<Vec<u8>>, serde_json::Error> {
        serde_json::to_vec(value).map(Some)
    }
}
impl ReplyBody for NoBody {
    type Value = ();
    fn decode(_: &[u8]) -> Result<(), serde_json::Error> {
        Ok(())
    }
}
impl ReplyBody for Text {
    type Value = String;
    fn decode(bytes: &[u8]) -> Result<String, serde_json::Error> {
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }
}
impl<T: ToSchema + DeserializeOwned> ReplyBody for Json<T> {
    type Value = T;
    fn decode(bytes: &[u8]) -> Result<T, serde_json::Error> {
        serde_json::from_slice(bytes)
    }
}

impl<T: ToSchema + DeserializeOwned> ReplyBody for JsonList<T> {
    type Value = List<T>;
    fn decode(bytes: &[u8]) -> Result<List<T>, serde_json::Error> {
        serde_json::from_slice(bytes)
    }
}
impl<T: ToSchema + DeserializeOwned> ReplyBody for JsonAccepted<T> {
    type Value = Accepted<T>;
    fn decode(bytes: &[u8]) -> Result<Accepted<T>, serde_json::Error> {
        serde_json::from_slice(bytes)
    }
}

/// A list and the revision it reflects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct List<T> {
    /// The objects, by name or by time.
    pub items: Vec<T>,
    /// The revision that the list reflects: subscribe to events since this one and nothing is missed.
    pub revision: u64,
}

/// A write was agreed; the rest takes longer than a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Accepted<T> {
    /// The object as it now is.
    pub object: T,
    /// The task that ends when the work is done.
    pub task: TaskId,
    /// The revision that this write made.
    pub revision: u64,
}

/// A removal was agreed; the object is gone when the task has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Removal {
    /// The object.
    pub id: Uuid,
    /// The task that ends when nothing is left of it.
    pub task: TaskId,
    /// The revision that this write made.
    pub revision: u64,
}

/// A row of the table, without its types.
#[derive(Debug, Clone, Copy)]
pub struct Info {
    /// `vm_start`: the handler, the client call and the audited action have the same name.
    pub name: &'static str,
    /// Its group in the document: the noun.
    pub tag: &'static str,
    /// Method.
    pub method: Method,
    /// Path under [`BASE`] (but `/metrics`, which stands alone).
    pub path: &'static str,
    /// Who may.
    pub access: Access,
    /// When.
    pub modes: Modes,
    /// What it does.
    pub doc: &'static str,
    /// Query parameters, without `at_least`.
    pub query: &'static [Query],
    /// Body of the request.
    pub request: BodyKind,
    /// Body of the reply.
    pub reply: BodyKind,
    /// Status of success.
    pub status: u16,
    /// Registers the request's schema.
    pub request_schema: fn(&mut Schemas) -> Option<Cow<'static, str>>,
    /// Registers the reply's schema.
    pub reply_schema: fn(&mut Schemas) -> Option<Cow<'static, str>>,
}

impl Info {
    /// The path with its base.
    pub fn full_path(&self) -> String {
        if self.path == "/metrics" {
            self.path.to_owned()
        } else {
            format!("{BASE}{}", self.path)
        }
    }

    /// It changes something.
    pub fn writes(&self) -> bool {
        self.method != Method::Get
    }

    /// An idempotency key is honoured. Not where the body holds a password (a key keeps a digest of the request for all
    /// to guess from) or the reply a secret (it is told once), nor where nothing is agreed on.
    pub fn keyed(&self) -> bool {
        let secret = [
            "setup_create",
            "session_create",
            "token_create",
            "user_create",
        ];
        self.writes()
            && self.modes == Modes::Run
            && self.request != BodyKind::Octets
            && !secret.contains(&self.name)
    }

    /// `?at_least=` is understood: it reads agreed state.
    pub fn at_least(&self) -> bool {
        !self.writes() && self.modes == Modes::Run && self.reply == BodyKind::Json
    }

    /// The names in braces in the path.
    pub fn path_params(&self) -> impl Iterator<Item = &'static str> {
        self.path
            .split('/')
            .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
    }
}

/// A row of the table with the types of its bodies.
#[derive(Debug)]
pub struct Endpoint<Q, R> {
    /// The row.
    pub info: Info,
    types: PhantomData<fn(Q) -> R>,
}

macro_rules! endpoints {
    ($(
        $(#[doc = $doc:literal])+
        $name:ident: $tag:ident $method:ident $path:literal, $access:expr, $modes:ident,
            $request:ty => $status:literal $reply:ty $(, $query:ident)*;
    )+) => {
        $(
            $(#[doc = $doc])+
            #[allow(non_upper_case_globals)] // one word from the URL's table to the handler: grep finds the whole path
            pub static $name: Endpoint<$request, $reply> = Endpoint {
                info: Info {
                    name: stringify!($name),
                    tag: stringify!($tag),
                    method: Method::$method,
                    path: $path,
                    access: $access,
                    modes: Modes::$modes,
                    doc: concat!($($doc),+),
                    query: &[$($query),*],
                    request: <$request as Body>::KIND,
                    reply: <$reply as Body>::KIND,
                    status: $status,
                    request_schema: <$request as Body>::schema,
                    reply_schema: <$reply as Body>::schema,
                },
                types: PhantomData,
            };
        )+

        /// All rows, in reading order.
        pub fn all() -> Vec<&'static Info> {
            vec![$(&$name.info),+]
        }
    };
}

const PUBLIC: Access = Access::Public;
const VIEWER: Access = Access::Role(Role::Viewer);
const OPERATOR: Access = Access::Role(Role::Operator);
const ADMIN: Access = Access::Role(Role::Admin);

endpoints! {
    /// Whether the API answers, and in which mode.
    health_get: system Get "/health", PUBLIC, Any, NoBody => 200 Json<Health>;
    /// This document.
    openapi_get: system Get "/openapi.json", PUBLIC, Any, NoBody => 200 Text;
    /// Counters and gauges in OpenMetrics text.
    metrics_get: system Get "/metrics", VIEWER, Run, NoBody => 200 Text;

    /// Whether an administrator exists.
    setup_get: setup Get "/setup", PUBLIC, Any, NoBody => 200 Json<SetupStatus>;
    /// Enrols the first administrator with the one-time token that the machine's console shows.
    setup_create: setup Post "/setup", PUBLIC, Run, Json<SetupRequest> => 201 Json<User>;

    /// Signs in: a bearer token that ends after twelve hours.
    session_create: sessions Post "/sessions", PUBLIC, Run, Json<SessionCreate> => 201 Json<TokenCreated>;
    /// Signs out: revokes the token that the request carries.
    session_delete: sessions Delete "/sessions/current", VIEWER, Run, NoBody => 204 NoBody;

    /// The caller's tokens; an administrator sees everybody's.
    token_list: tokens Get "/tokens", VIEWER, Run, NoBody => 200 JsonList<Token>;
    /// Makes a token for a program. Its secret is told once.
    token_create: tokens Post "/tokens", VIEWER, Run, Json<TokenCreate> => 201 Json<TokenCreated>;
    /// Revokes a token: one's own, or as administrator anybody's.
    token_delete: tokens Delete "/tokens/{token}", VIEWER, Run, NoBody => 204 NoBody;

    /// All users.
    user_list: users Get "/users", ADMIN, Run, NoBody => 200 JsonList<User>;
    /// Makes a user.
    user_create: users Post "/users", ADMIN, Run, Json<UserCreate> => 201 Json<User>;
    /// Removes a user and their tokens; never the last administrator.
    user_delete: users Delete "/users/{user}", ADMIN, Run, NoBody => 204 NoBody;

    /// All hosts.
    host_list: hosts Get "/hosts", VIEWER, Run, NoBody => 200 JsonList<Host>;
    /// A host.
    host_get: hosts Get "/hosts/{host}", VIEWER, Run, NoBody => 200 Json<Host>;

    /// All images.
    image_list: images Get "/images", VIEWER, Run, NoBody => 200 JsonList<Image>;
    /// An image.
    image_get: images Get "/images/{image}", VIEWER, Run, NoBody => 200 Json<Image>;
    /// Makes the record of an image; its bytes follow by `PUT`. The task ends when they are verified.
    image_create: images Post "/images", OPERATOR, Run, Json<ImageCreate> => 201 JsonAccepted<Image>;
    /// Receives an image's bytes; they must have the promised length and SHA-256.
    image_upload: images Put "/images/{image}/content", OPERATOR, Run, Octets => 200 Json<Image>;
    /// Removes an image.
    image_delete: images Delete "/images/{image}", OPERATOR, Run, NoBody => 202 Json<Removal>;

    /// All volumes.
    volume_list: volumes Get "/volumes", VIEWER, Run, NoBody => 200 JsonList<Volume>;
    /// A volume.
    volume_get: volumes Get "/volumes/{volume}", VIEWER, Run, NoBody => 200 Json<Volume>;
    /// Makes a volume, blank or from an image.
    volume_create: volumes Post "/volumes", OPERATOR, Run, Json<VolumeCreate> => 202 JsonAccepted<Volume>;
    /// Grows a volume, also while VMs have it.
    volume_update: volumes Patch "/volumes/{volume}", OPERATOR, Run, Json<VolumeUpdate> => 202 JsonAccepted<Volume>;
    /// Removes a volume and what is on it.
    volume_delete: volumes Delete "/volumes/{volume}", OPERATOR, Run, NoBody => 202 Json<Removal>;

    /// All networks.
    network_list: networks Get "/networks", VIEWER, Run, NoBody => 200 JsonList<Network>;
    /// A network.
    network_get: networks Get "/networks/{network}", VIEWER, Run, NoBody => 200 Json<Network>;
    /// Makes a network.
    network_create: networks Post "/networks", ADMIN, Run, Json<NetworkCreate> => 202 JsonAccepted<Network>;
    /// Removes a network that has no NICs.
    network_delete: networks Delete "/networks/{network}", ADMIN, Run, NoBody => 202 Json<Removal>;

    /// All VMs.
    vm_list: vms Get "/vms", VIEWER, Run, NoBody => 200 JsonList<Vm>;
    /// A VM.
    vm_get: vms Get "/vms/{vm}", VIEWER, Run, NoBody => 200 Json<Vm>;
    /// Makes a VM; it is stopped.
    vm_create: vms Post "/vms", OPERATOR, Run, Json<VmCreate> => 201 Json<Vm>;
    /// Changes a stopped VM.
    vm_update: vms Patch "/vms/{vm}", OPERATOR, Run, Json<VmUpdate> => 200 Json<Vm>;
    /// Removes a stopped VM. Its volumes stay.
    vm_delete: vms Delete "/vms/{vm}", OPERATOR, Run, NoBody => 202 Json<Removal>;
    /// Starts a VM. The task ends when its vCPUs run.
    vm_start: vms Post "/vms/{vm}/start", OPERATOR, Run, NoBody => 202 JsonAccepted<Vm>;
    /// Presses the VM's power button; a guest that does not listen is killed after a while.
    vm_stop: vms Post "/vms/{vm}/stop", OPERATOR, Run, NoBody => 202 JsonAccepted<Vm>;
    /// Ends a VM at once, like pulling its plug.
    vm_kill: vms Post "/vms/{vm}/kill", OPERATOR, Run, NoBody => 202 JsonAccepted<Vm>;
    /// Stops a VM and starts it again.
    vm_reboot: vms Post "/vms/{vm}/reboot", OPERATOR, Run, NoBody => 202 JsonAccepted<Vm>;
    /// The VM's serial console: what was printed since power-on, then what comes; binary messages both ways.
    vm_serial: vms Get "/vms/{vm}/serial", OPERATOR, Run, NoBody => 101 WebSocket;

    /// Tasks, newest first.
    task_list: tasks Get "/tasks", VIEWER, Run, NoBody => 200 JsonList<Task>, LIMIT;
    /// A task; with `?wait=` as soon as it has ended.
    task_get: tasks Get "/tasks/{task}", VIEWER, Run, NoBody => 200 Json<Task>, WAIT;

    /// Changes as they happen, resumable.
    events: events Get "/events", VIEWER, Run, NoBody => 200 EventStream, SINCE_REVISION;
    /// Who did what, newest first.
    audit_list: audit Get "/audit", ADMIN, Run, NoBody => 200 JsonList<AuditRecord>, LIMIT;

    /// This host itself.
    system_get: system Get "/system", VIEWER, Any, NoBody => 200 Json<System>;
    /// Restarts this host or switches it off.
    system_power: system Post "/system/power", ADMIN, Any, Json<PowerRequest> => 202 NoBody;
    /// How this host gets its address.
    system_network_get: system Get "/system/network", VIEWER, Any, NoBody => 200 Json<NetworkSettings>;
    /// Changes how this host gets its address, at once and for good.
    system_network_set: system Put "/system/network", ADMIN, Any, Json<NetworkSettings> => 200 Json<NetworkSettings>;
    /// The log of this host, from a bounded memory.
    system_logs: system Get "/system/logs", ADMIN, Any, NoBody => 200 JsonList<LogLine>, SINCE_LINE;

    /// The disks of this machine and where the installer is.
    install_get: install Get "/install", VIEWER, Install, NoBody => 200 Json<InstallStatus>;
    /// Installs onto a disk; then the machine restarts from it.
    install_start: install Post "/install", ADMIN, Install, Json<InstallRequest> => 202 Json<InstallStatus>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn rows_are_unique_and_documented() {
        let all = all();
        let names: BTreeSet<_> = all.iter().map(|e| e.name).collect();
        let places: BTreeSet<_> = all.iter().map(|e| (e.method, e.path)).collect();
        assert_eq!((names.len(), places.len()), (all.len(), all.len()));
        for endpoint in all {
            let doc = endpoint.doc.trim();
            assert!(doc.len() >= 5 && doc.ends_with('.'), "{}", endpoint.name);
            assert!(endpoint.path.starts_with('/'), "{}", endpoint.name);
        }
    }

    #[test]
    fn only_what_must_be_public_is_public() {
        let public: Vec<_> = all()
            .into_iter()
            .filter(|e| e.access == Access::Public)
            .map(|e| e.name)
            .collect();
        let expected = [
            "health_get",
            "openapi_get",
            "setup_get",
            "setup_create",
            "session_create",
        ];
        assert_eq!(public, expected);
    }
}
