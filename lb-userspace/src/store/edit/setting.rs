//! `KEY=VALUE` on a service: `algo=maglev`, `health_check.port=8080`; nothing behind the `=` takes the key out.

use std::str::FromStr;

use toml_edit::{Item, Table, TableLike, Value};

use super::EditError;

/// One setting of a service.
#[derive(Clone, Debug)]
pub struct Setting {
    /// `algo`, or `health_check.port`.
    key: String,
    /// `None` takes it out.
    value: Option<Value>,
}

impl FromStr for Setting {
    type Err = EditError;

    fn from_str(text: &str) -> Result<Self, EditError> {
        let form = || EditError::Setting(text.chars().take(200).collect());
        let (key, value) = text.split_once('=').ok_or_else(form)?;
        let part = |part: &str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        };
        if !key.split('.').all(part) || key.split('.').count() > 2 || value.chars().any(char::is_control) {
            return Err(form());
        }
        let instead = match key.split('.').next() {
            Some("name") => "a service keeps its name; create another one, then delete this",
            Some("backends") => "`weir backend add|remove|weight|drain|ready` change backends",
            _ => "",
        };
        if !instead.is_empty() {
            return Err(EditError::NotHere { key: key.to_owned(), instead });
        }
        // A number stays one, so that the findings about units and types are those of a file.
        let value = match (value, value.parse::<i64>()) {
            ("", _) => None,
            (_, Ok(number)) => Some(Value::from(number)),
            (text, Err(_)) => Some(Value::from(text)),
        };
        Ok(Self { key: key.to_owned(), value })
    }
}

/// Makes the settings in a service's table.
pub(super) fn set(table: &mut Table, settings: &[Setting]) -> Result<(), EditError> {
    for (at, setting) in settings.iter().enumerate() {
        if settings.iter().take(at).any(|other| other.key == setting.key) {
            return Err(EditError::Twice(setting.key.clone()));
        }
        match setting.key.split_once('.') {
            None if setting.value.is_none() => _ = table.remove(&setting.key),
            None => put(table, &setting.key, setting.value.clone()),
            Some((outer, inner)) => within(table, outer, inner, setting.value.clone()),
        }
    }
    Ok(())
}

/// Sets `inner` in the table `outer`, which is created where it is missing and vanishes with its last key.
fn within(table: &mut Table, outer: &str, inner: &str, value: Option<Value>) {
    if !table.contains_key(outer) && value.is_some() {
        // A header of its own for checks, as everybody writes them; braces for the one parameter of an algorithm.
        let new = if outer == "health_check" {
            let mut new = Table::new();
            // Before the backends, which would else take it for their own in the reader's eyes.
            new.decor_mut().set_prefix("\n");
            Item::Table(new)
        } else {
            toml_edit::value(toml_edit::InlineTable::new())
        };
        table.insert(outer, new);
    }
    let Some(item) = table.get_mut(outer) else { return };
    match item.as_table_like_mut() {
        Some(inside) => put(inside, inner, value),
        // A word where a table belongs: the check of the whole says so.
        None => {
            let mut new = toml_edit::InlineTable::new();
            new.extend(value.map(|value| (inner.to_owned(), value)));
            *item = toml_edit::value(new);
        }
    }
    if table.get(outer).and_then(Item::as_table_like).is_some_and(|inside| inside.is_empty()) {
        table.remove(outer);
    }
}

/// Puts `value` in the place of what stands under `key`, with the comment behind it; `None` takes it out.
pub(super) fn put(table: &mut dyn TableLike, key: &str, value: Option<Value>) {
    let Some(mut value) = value else {
        table.remove(key);
        return;
    };
    match table.get_mut(key) {
        Some(item) => {
            if let Some(before) = item.as_value() {
                *value.decor_mut() = before.decor().clone();
            }
            *item = Item::Value(value);
        }
        None => _ = table.insert(key, Item::Value(value)),
    }
}
