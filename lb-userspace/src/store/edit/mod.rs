//! Changes of services and backends as changes of objects, made in the text itself, so that its comments and its form stay.
//!
//! Pure: objects in, new texts out. Owns: which words change what. Refuses to know: whether the result is a configuration,
//! which the same check as for a file decides ([`super::document`]), and how it is stored.

mod backend;
mod pool;
mod setting;
#[cfg(test)]
mod tests;

use toml_edit::{ArrayOfTables, DocumentMut, Item, Table};

pub use backend::{BackendChange, NewBackend, Target, add_backend, change_backend, remove_backend};
pub use pool::{delete_pool, set_pool};
pub use setting::Setting;

use super::{
    document::{normal, text_of},
    object::{FormError, Key, Objects},
    write::NewText,
};
use crate::model::{SERVICE_OBJECT, schema};

/// Why a change cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// There is no such service.
    #[error("there is no service `{name}`{near}")]
    NoService {
        /// The name.
        name: String,
        /// Which one may be meant, as the end of the sentence.
        near: String,
    },
    /// There is no such pool.
    #[error("there is no pool `{0}`")]
    NoPool(String),
    /// There is one already.
    #[error("there is a service `{0}` already")]
    ServiceExists(String),
    /// The service has no such backend.
    #[error("service `{service}` has no backend {backend}")]
    NoBackend {
        /// The service.
        service: String,
        /// The backend as it was named.
        backend: String,
    },
    /// The service has it already.
    #[error("service `{service}` has a backend {backend} already")]
    BackendExists {
        /// The service.
        service: String,
        /// The backend.
        backend: String,
    },
    /// Several backends have the address.
    #[error("service `{service}` has several backends at {address}: give the port too")]
    Ambiguous {
        /// The service.
        service: String,
        /// The address.
        address: std::net::IpAddr,
    },
    /// Not `KEY=VALUE`.
    #[error("`{0}` is no setting: write KEY=VALUE, as in algo=maglev or health_check.type=http")]
    Setting(String),
    /// A key that is not set this way.
    #[error("`{key}` is not set this way: {instead}")]
    NotHere {
        /// The key.
        key: String,
        /// What to do.
        instead: &'static str,
    },
    /// A key is set twice.
    #[error("`{0}` is set twice")]
    Twice(String),
    /// A text is not what it should be; the check of the whole says more.
    #[error("{what} cannot be edited: {why}")]
    Broken {
        /// The object or the file.
        what: String,
        /// Why.
        why: String,
    },
    /// A form of the store.
    #[error(transparent)]
    Form(#[from] FormError),
}

impl EditError {
    /// Whether something that was named does not exist.
    pub const fn is_not_found(&self) -> bool {
        matches!(self, Self::NoService { .. } | Self::NoBackend { .. })
    }

    /// Whether the words of the command are wrong, whatever the store holds.
    pub const fn is_usage(&self) -> bool {
        matches!(self, Self::Setting(_) | Self::NotHere { .. } | Self::Twice(_) | Self::Ambiguous { .. })
    }
}

/// The object of a service.
fn key(name: &str) -> Result<Key, EditError> {
    Ok(Key::new(&format!("{SERVICE_OBJECT}/{name}"))?)
}

/// A service whose text is being changed.
struct Open {
    key: Key,
    document: DocumentMut,
}

impl Open {
    fn new(objects: &Objects, name: &str) -> Result<Self, EditError> {
        let key = key(name)?;
        let Some(text) = objects.get(&key) else {
            let names = objects.keys().filter(|key| key.kind() == SERVICE_OBJECT).map(Key::name);
            let near = match schema::nearest(name, names.clone()) {
                Some((_, near)) => format!(": did you mean `{near}`?"),
                None => match names.count() {
                    0 => ": the store holds none".to_owned(),
                    count => format!(" among the {count} of the store"),
                },
            };
            return Err(EditError::NoService { name: name.to_owned(), near });
        };
        let broken = |why: String| EditError::Broken { what: format!("the object {key}"), why };
        let mut document: DocumentMut =
            text.parse().map_err(|error: toml_edit::TomlError| broken(error.message().to_owned()))?;
        // A service may be written as an inline table; from now on it has a header.
        let tables = document.remove(SERVICE_OBJECT).and_then(|item| item.into_array_of_tables().ok());
        let tables = tables.filter(|tables| tables.len() == 1);
        let tables = tables.ok_or_else(|| broken(format!("it does not hold one `[[{SERVICE_OBJECT}]]`")))?;
        document.insert(SERVICE_OBJECT, Item::ArrayOfTables(tables));
        Ok(Self { key, document })
    }

    /// The table of the service.
    fn table(&mut self) -> Result<&mut Table, EditError> {
        let tables = self.document.get_mut(SERVICE_OBJECT).and_then(Item::as_array_of_tables_mut);
        tables.and_then(|tables: &mut ArrayOfTables| tables.get_mut(0)).ok_or_else(|| EditError::Broken {
            what: format!("the object {}", self.key),
            why: "it holds no service".to_owned(),
        })
    }

    /// What becomes of the store.
    fn close(self) -> Vec<NewText> {
        vec![(self.key, Some(normal(&self.document.to_string())))]
    }
}

/// A new service with these settings and backends.
///
/// # Errors
/// [`EditError::ServiceExists`], and what is wrong with the settings.
pub fn create_service(
    objects: &Objects,
    name: &str,
    settings: &[Setting],
    backends: &[NewBackend],
) -> Result<Vec<NewText>, EditError> {
    let key = key(name)?;
    if objects.contains_key(&key) {
        return Err(EditError::ServiceExists(name.to_owned()));
    }
    let mut table = Table::new();
    table.insert("name", toml_edit::value(name));
    setting::set(&mut table, settings)?;
    for new in backends {
        backend::push(&mut table, name, new)?;
    }
    Ok(vec![(key, Some(text_of(SERVICE_OBJECT, table)))])
}

/// The service with these settings; one without a value goes back to its default.
///
/// # Errors
/// [`EditError::NoService`], and what is wrong with the settings.
pub fn set_service(objects: &Objects, name: &str, settings: &[Setting]) -> Result<Vec<NewText>, EditError> {
    let mut open = Open::new(objects, name)?;
    setting::set(open.table()?, settings)?;
    Ok(open.close())
}

/// The store without the service.
///
/// # Errors
/// [`EditError::NoService`].
pub fn delete_service(objects: &Objects, name: &str) -> Result<Vec<NewText>, EditError> {
    match Open::new(objects, name) {
        Ok(open) => Ok(vec![(open.key, None)]),
        // What cannot be edited can still be removed.
        Err(EditError::Broken { .. }) => Ok(vec![(key(name)?, None)]),
        Err(error) => Err(error),
    }
}
