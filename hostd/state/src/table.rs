//! A table of records, found by id and by unique name.

use std::collections::BTreeMap;

use api::names::{Name, Ref};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// What a table holds.
pub trait Record {
    /// Its id.
    fn id(&self) -> Uuid;
    /// Its name, unique in the table.
    fn name(&self) -> &Name;
}

/// Records in the order of their ids. The index by name is derived, and not saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table<R> {
    records: BTreeMap<Uuid, R>,
    names: BTreeMap<Name, Uuid>,
}

impl<R> Default for Table<R> {
    fn default() -> Self {
        Self {
            records: BTreeMap::new(),
            names: BTreeMap::new(),
        }
    }
}

impl<R: Record> Table<R> {
    /// By id.
    pub fn get(&self, id: Uuid) -> Option<&R> {
        self.records.get(&id)
    }

    /// By name.
    pub fn named(&self, name: &Name) -> Option<&R> {
        self.names.get(name).and_then(|id| self.records.get(id))
    }

    /// By id or name, as the caller has it.
    pub fn find(&self, reference: &Ref) -> Option<&R> {
        match reference {
            Ref::Id(id) => self.get(*id),
            Ref::Name(name) => self.named(name),
        }
    }

    /// All, in the order of their ids: with time-ordered ids, the oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &R> {
        self.records.values()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// None at all.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Writes a record, new or changed; gives the one it replaces.
    pub(crate) fn put(&mut self, record: R) -> Option<R> {
        let id = record.id();
        let name = record.name().clone();
        let old = self.records.insert(id, record);
        if let Some(old) = &old
            && *old.name() != name
        {
            self.names.remove(old.name());
        }
        self.names.insert(name, id);
        old
    }

    /// Takes a record out.
    pub(crate) fn remove(&mut self, id: Uuid) -> Option<R> {
        let old = self.records.remove(&id)?;
        self.names.remove(old.name());
        Some(old)
    }

    /// Every name leads to a record of that name, and every record has a name that leads to it.
    pub(crate) fn names_agree(&self) -> bool {
        self.names.len() == self.records.len()
            && self
                .records
                .values()
                .all(|r| self.names.get(r.name()) == Some(&r.id()))
    }
}

impl<R: Serialize> Serialize for Table<R> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.records.values())
    }
}

impl<'de, R: Record + Deserialize<'de>> Deserialize<'de> for Table<R> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut table = Self::default();
        for record in Vec::<R>::deserialize(deserializer)? {
            if table.names.contains_key(record.name()) || table.get(record.id()).is_some() {
                return Err(serde::de::Error::custom("two records of one name or id"));
            }
            table.put(record);
        }
        Ok(table)
    }
}
