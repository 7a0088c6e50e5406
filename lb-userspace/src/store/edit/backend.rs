//! Backends of a service: one more, one less, or one that changes.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use toml_edit::{Array, ArrayOfTables, InlineTable, Item, Table, TableLike, Value};

use super::{EditError, NewText, Objects, Open, setting::put};
use crate::model::{AdminState, BackendRef};

/// A backend as it is added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewBackend {
    /// Its address.
    pub address: IpAddr,
    /// Its port, where it is not the service's.
    pub port: Option<u16>,
    /// Weight, limit and state.
    pub change: BackendChange,
}

/// What changes on a backend; `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendChange {
    /// Configured weight.
    pub weight: Option<u16>,
    /// Connections at most; 0 for no limit.
    pub max_connections: Option<u32>,
    /// Administrative state.
    pub admin_state: Option<AdminState>,
}

/// Which backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its service.
    pub service: String,
    /// Its address.
    pub address: IpAddr,
    /// Its port; `None` for the only one at that address.
    pub port: Option<u16>,
}

/// `web/10.0.0.11:80`.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, address, port } = self;
        write!(f, "{}", BackendRef { service: service.clone(), address: *address, port: port.unwrap_or(0) })
    }
}

impl FromStr for NewBackend {
    type Err = EditError;

    /// `10.0.0.11`, `10.0.0.11:80`, `[2001:db8::11]:80`.
    fn from_str(text: &str) -> Result<Self, EditError> {
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        let (address, port) = match (text.parse::<SocketAddr>(), bare.parse::<IpAddr>()) {
            (Ok(at), _) if at.port() > 0 => (at.ip(), Some(at.port())),
            (_, Ok(address)) => (address, None),
            _ => {
                let what = format!("`{}`", text.chars().take(100).collect::<String>());
                let why =
                    "it is neither an address nor an address with a port, as in 10.0.0.11:80 or [2001:db8::11]:80";
                return Err(EditError::Broken { what, why: why.to_owned() });
            }
        };
        Ok(Self { address, port, change: BackendChange::default() })
    }
}

/// The service with one backend more.
///
/// # Errors
/// [`EditError::NoService`], [`EditError::BackendExists`].
pub fn add_backend(objects: &Objects, service: &str, new: &NewBackend) -> Result<Vec<NewText>, EditError> {
    let mut open = Open::new(objects, service)?;
    push(open.table()?, service, new)?;
    Ok(open.close())
}

/// The service without the backend.
///
/// # Errors
/// [`EditError::NoService`], [`EditError::NoBackend`], [`EditError::Ambiguous`].
pub fn remove_backend(objects: &Objects, target: &Target) -> Result<Vec<NewText>, EditError> {
    let mut open = Open::new(objects, &target.service)?;
    let table = open.table()?;
    let at = find(table, target)?;
    match table.get_mut("backends") {
        Some(Item::ArrayOfTables(tables)) => _ = tables.remove(at),
        Some(Item::Value(Value::Array(array))) => _ = array.remove(at),
        _ => {}
    }
    Ok(open.close())
}

/// The service with the backend changed.
///
/// # Errors
/// [`EditError::NoService`], [`EditError::NoBackend`], [`EditError::Ambiguous`].
pub fn change_backend(objects: &Objects, target: &Target, change: BackendChange) -> Result<Vec<NewText>, EditError> {
    let mut open = Open::new(objects, &target.service)?;
    let table = open.table()?;
    let at = find(table, target)?;
    let backend: Option<&mut dyn TableLike> = match table.get_mut("backends") {
        Some(Item::ArrayOfTables(tables)) => tables.get_mut(at).map(|table| table as _),
        Some(Item::Value(Value::Array(array))) => {
            array.get_mut(at).and_then(Value::as_inline_table_mut).map(|table| table as _)
        }
        _ => None,
    };
    if let Some(backend) = backend {
        apply(backend, change);
    }
    Ok(open.close())
}

/// Writes what changes. A default is only written over something else.
fn apply(backend: &mut dyn TableLike, change: BackendChange) {
    let mut set = |key: &str, value: Option<(Value, bool)>| {
        if let Some((value, is_default)) = value
            && (!is_default || backend.contains_key(key))
        {
            put(backend, key, Some(value));
        }
    };
    set("weight", change.weight.map(|weight| (i64::from(weight).into(), weight == 1)));
    set("max_connections", change.max_connections.map(|limit| (i64::from(limit).into(), limit == 0)));
    set("admin_state", change.admin_state.map(|state| (state.to_string().into(), state == AdminState::Ready)));
}

/// Appends a backend to those of a service's table.
pub(super) fn push(table: &mut Table, service: &str, new: &NewBackend) -> Result<(), EditError> {
    let service_port = port_of(table);
    let port = new.port.unwrap_or(service_port);
    if places(table).any(|(address, other)| address == Some(new.address) && other == port) {
        return Err(EditError::BackendExists {
            service: service.to_owned(),
            backend: shown(service, new.address, port),
        });
    }
    let mut fields: Vec<(&str, Value)> = vec![("address", new.address.to_string().into())];
    fields.extend(new.port.filter(|port| *port != service_port).map(|port| ("port", i64::from(port).into())));
    match table.entry("backends").or_insert_with(|| Item::ArrayOfTables(ArrayOfTables::new())) {
        Item::ArrayOfTables(tables) => {
            let mut backend = Table::new();
            fields.into_iter().for_each(|(key, value)| _ = backend.insert(key, Item::Value(value)));
            apply(&mut backend, new.change);
            backend.decor_mut().set_prefix("\n");
            tables.push(backend);
        }
        Item::Value(Value::Array(array)) => {
            let mut backend = InlineTable::new();
            fields.into_iter().for_each(|(key, value)| _ = backend.insert(key, value));
            apply(&mut backend, new.change);
            push_inline(array, backend);
        }
        _ => {
            let (what, why) = (format!("service `{service}`"), "its `backends` are no array of tables".to_owned());
            return Err(EditError::Broken { what, why });
        }
    }
    Ok(())
}

/// Appends in the form that the others have: on a line of its own, or on the same one.
fn push_inline(array: &mut Array, backend: InlineTable) {
    let mut backend = Value::InlineTable(backend);
    let prefix = array.iter().last().and_then(|last| last.decor().prefix()?.as_str().map(str::to_owned));
    let prefix = prefix.filter(|prefix| prefix.trim().is_empty());
    match prefix {
        Some(prefix) if array.len() > 1 || prefix.contains('\n') => {
            backend.decor_mut().set_prefix(prefix);
            array.push_formatted(backend);
        }
        _ => array.push(backend),
    }
}

/// Address and port of each backend of the table.
fn places(table: &Table) -> impl Iterator<Item = (Option<IpAddr>, u16)> {
    let service_port = port_of(table);
    let place = move |backend: &dyn TableLike| {
        let address = backend.get("address").and_then(Item::as_str).and_then(|text| text.parse().ok());
        let port = backend.get("port").and_then(Item::as_integer).and_then(|port| u16::try_from(port).ok());
        (address, port.unwrap_or(service_port))
    };
    let list: Vec<_> = match table.get("backends") {
        Some(Item::ArrayOfTables(tables)) => tables.iter().map(|table| place(table)).collect(),
        Some(Item::Value(Value::Array(array))) => {
            array.iter().map(|value| value.as_inline_table().map_or((None, 0), |table| place(table))).collect()
        }
        _ => Vec::new(),
    };
    list.into_iter()
}

/// The service's port; 0 for all.
fn port_of(table: &Table) -> u16 {
    table.get("port").and_then(Item::as_integer).and_then(|port| u16::try_from(port).ok()).unwrap_or(0)
}

/// Which one of the table's backends.
fn find(table: &Table, target: &Target) -> Result<usize, EditError> {
    let Target { service, address, port } = target;
    let is = |place: (Option<IpAddr>, u16)| place.0 == Some(*address) && port.is_none_or(|port| place.1 == port);
    let mut found = places(table).enumerate().filter(|(_, place)| is(*place)).map(|(at, _)| at);
    match (found.next(), found.next()) {
        (Some(at), None) => Ok(at),
        (Some(_), Some(_)) if port.is_none() => {
            Err(EditError::Ambiguous { service: service.clone(), address: *address })
        }
        // Twice the same backend is refused by the check of the whole; the first one is as good as the other.
        (Some(at), Some(_)) => Ok(at),
        (None, _) => {
            let backend = shown(service, *address, port.unwrap_or(0));
            Err(EditError::NoBackend { service: service.clone(), backend })
        }
    }
}

/// `10.0.0.11:80`.
fn shown(service: &str, address: IpAddr, port: u16) -> String {
    let name = BackendRef { service: service.to_owned(), address, port }.to_string();
    name.split_once('/').map_or_else(String::new, |(_, backend)| backend.to_owned())
}
