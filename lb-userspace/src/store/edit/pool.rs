//! Pools of addresses: one more, one that changes, one less.

use ipnet::IpNet;
use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, value};

use super::{EditError, NewText, Objects};
use crate::{
    model::POOL_OBJECT,
    store::{
        document::{normal, text_of},
        object::Key,
    },
};

/// The pool with this prefix; a new one where there is none of that name. Comments of one that exists stay.
///
/// # Errors
/// A name that is none.
pub fn set_pool(objects: &Objects, name: &str, prefix: IpNet) -> Result<Vec<NewText>, EditError> {
    let key = key(name)?;
    let mut document: DocumentMut = objects.get(&key).and_then(|text| text.parse().ok()).unwrap_or_default();
    let tables = document.get_mut(POOL_OBJECT).and_then(Item::as_array_of_tables_mut);
    let text = match tables.and_then(|tables: &mut ArrayOfTables| tables.get_mut(0)) {
        Some(table) => {
            table.insert("prefix", value(prefix.to_string()));
            normal(&document.to_string())
        }
        // What is no pool is replaced whole.
        None => {
            let mut table = Table::new();
            table.insert("name", value(name));
            table.insert("prefix", value(prefix.to_string()));
            text_of(POOL_OBJECT, table)
        }
    };
    Ok(vec![(key, Some(text))])
}

/// The store without the pool.
///
/// # Errors
/// [`EditError::NoPool`].
pub fn delete_pool(objects: &Objects, name: &str) -> Result<Vec<NewText>, EditError> {
    let key = key(name)?;
    if !objects.contains_key(&key) {
        return Err(EditError::NoPool(name.to_owned()));
    }
    Ok(vec![(key, None)])
}

fn key(name: &str) -> Result<Key, EditError> {
    Ok(Key::new(&format!("{POOL_OBJECT}/{name}"))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::document::after;

    #[test]
    fn a_pool_is_made_changed_and_deleted() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let none = Objects::new();
        let one = after(&none, &set_pool(&none, "front", net("192.0.2.0/28")).unwrap());
        let key = Key::new("pool/front").unwrap();
        assert_eq!(&*one[&key], "[[pool]]\nname = \"front\"\nprefix = \"192.0.2.0/28\"\n");
        let commented: Objects =
            [(key.clone(), "# Ours.\n[[pool]]\nname = \"front\"\nprefix = \"192.0.2.0/28\"\n".into())].into();
        let two = after(&commented, &set_pool(&commented, "front", net("2001:db8::/120")).unwrap());
        assert_eq!(&*two[&key], "# Ours.\n[[pool]]\nname = \"front\"\nprefix = \"2001:db8::/120\"\n");
        assert!(after(&two, &delete_pool(&two, "front").unwrap()).is_empty());
        assert_eq!(delete_pool(&none, "front"), Err(EditError::NoPool("front".into())));
        assert!(set_pool(&none, "no name", net("192.0.2.0/28")).is_err());
    }
}
