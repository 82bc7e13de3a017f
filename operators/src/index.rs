//! The two small tables that several operators keep: a value a key, and members by key.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

/// Applies a change to a table of keys with one value each. An update is a retraction and an
/// assertion in any order, so a retraction removes only the value that it names.
pub fn set<K: Hash + Eq, V: PartialEq>(table: &mut HashMap<K, V>, key: K, value: V, diff: isize) {
    if diff > 0 {
        table.insert(key, value);
    } else if table.get(&key) == Some(&value) {
        table.remove(&key);
    }
}

/// Takes a member from a key, and the key with its last member.
pub fn unlink<K: Hash + Eq, M: Hash + Eq>(index: &mut HashMap<K, HashSet<M>>, key: &K, member: &M) {
    if let Some(members) = index.get_mut(key) {
        members.remove(member);
        if members.is_empty() {
            index.remove(key);
        }
    }
}
