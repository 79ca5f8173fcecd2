//! The OpenAPI 3.1 document, made from the table of endpoints and the schemas of the nouns.

use serde_json::{Map, Value, json};

use crate::endpoints::{self, AT_LEAST, Access, Body, BodyKind, Info, Json, Modes, Schemas};
use crate::error::ApiError;

/// The document as pretty JSON with a newline at its end: exactly what `api/openapi.json` holds.
pub fn text() -> String {
    format!("{:#}\n", document())
}

/// The document.
pub fn document() -> Value {
    let mut schemas = Schemas::new();
    Json::<ApiError>::schema(&mut schemas);
    let mut paths: Map<String, Value> = Map::new();
    for endpoint in endpoints::all() {
        let operation = operation(endpoint, &mut schemas);
        let path = paths.entry(endpoint.full_path()).or_insert(json!({}));
        path[endpoint.method.as_str().to_lowercase()] = operation;
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "limiquantix",
            "version": "v1",
            "description": "Everything under /api/v1 only grows. Requests refuse unknown fields; replies may gain fields.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": { "bearer": { "type": "http", "scheme": "bearer" } },
            "responses": { "Refused": {
                "description": "Refused, and why.",
                "content": { "application/json": { "schema": { "$ref": "#/components/schemas/ApiError" } } },
            } },
        },
    })
}

fn operation(endpoint: &Info, schemas: &mut Schemas) -> Value {
    let mut operation = json!({
        "operationId": endpoint.name,
        "summary": endpoint.doc.trim(),
        "tags": [endpoint.tag],
        "description": format!("{} {}", who(endpoint.access), when(endpoint.modes)),
        "parameters": parameters(endpoint),
        "responses": {
            endpoint.status.to_string(): reply(endpoint, schemas),
            "default": { "$ref": "#/components/responses/Refused" },
        },
        "security": match endpoint.access {
            Access::Public => json!([]),
            Access::Role(_) => json!([{ "bearer": [] }]),
        },
    });
    match endpoint.request {
        BodyKind::None => {}
        BodyKind::Json => {
            operation["requestBody"] = json!({
                "required": true,
                "content": { "application/json": { "schema": reference((endpoint.request_schema)(schemas)) } },
            });
        }
        _ => {
            operation["requestBody"] = json!({
                "required": true,
                "content": { "application/octet-stream": { "schema": { "type": "string", "format": "binary" } } },
            });
        }
    }
    operation
}

fn who(access: Access) -> String {
    match access {
        Access::Public => "For anybody.".to_owned(),
        Access::Role(role) => format!("For the role {role:?} or higher."),
    }
}

fn when(modes: Modes) -> &'static str {
    match modes {
        Modes::Any => "Answers always.",
        Modes::Run => "Answers on an installed system.",
        Modes::Install => "Answers on a machine that was booted from a medium.",
    }
}

fn parameters(endpoint: &Info) -> Vec<Value> {
    let mut all: Vec<Value> = endpoint
        .path_params()
        .map(|name| {
            let doc = match name {
                "task" | "token" => "Its id.",
                _ => "Its name or id.",
            };
            json!({ "name": name, "in": "path", "required": true, "description": doc, "schema": { "type": "string" } })
        })
        .collect();
    let at_least = endpoint.at_least().then_some(&AT_LEAST);
    for query in endpoint.query.iter().chain(at_least) {
        all.push(json!({
            "name": query.name, "in": "query", "required": false, "description": query.doc,
            "schema": { "type": "integer", "format": "int64", "minimum": 0 },
        }));
    }
    if endpoint.keyed() {
        all.push(json!({
            "name": "Idempotency-Key", "in": "header", "required": false,
            "description": "The same key with the same request is done once and answered alike.",
            "schema": { "type": "string", "minLength": 1, "maxLength": endpoints::IDEMPOTENCY_KEY_LEN_MAX },
        }));
    }
    if endpoint.reply == BodyKind::Events {
        all.push(json!({
            "name": "Last-Event-ID", "in": "header", "required": false,
            "description": "The id of the last event seen.", "schema": { "type": "string" },
        }));
    }
    all
}

fn reply(endpoint: &Info, schemas: &mut Schemas) -> Value {
    let (kind, schema) = match endpoint.reply {
        BodyKind::None => return json!({ "description": "Done." }),
        BodyKind::WebSocket => {
            return json!({ "description": "A WebSocket; binary messages both ways." });
        }
        BodyKind::Json => (
            "application/json",
            reference((endpoint.reply_schema)(schemas)),
        ),
        BodyKind::Events => (
            "text/event-stream",
            reference((endpoint.reply_schema)(schemas)),
        ),
        BodyKind::Text => ("text/plain", json!({ "type": "string" })),
        BodyKind::Octets => (
            "application/octet-stream",
            json!({ "type": "string", "format": "binary" }),
        ),
    };
    json!({ "description": "Done.", "content": { kind: { "schema": schema } } })
}

fn reference(name: Option<std::borrow::Cow<'static, str>>) -> Value {
    match name {
        Some(name) => json!({ "$ref": format!("#/components/schemas/{name}") }),
        None => json!({}),
    }
}
