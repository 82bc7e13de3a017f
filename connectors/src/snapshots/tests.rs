#![allow(clippy::unwrap_used)]

use super::*;
use crate::Disposition;
use object_store::memory::InMemory;

type Entries = BTreeMap<u8, BTreeMap<String, Option<Vec<u8>>>>;

fn meta(epoch: i64) -> Meta {
    let (job, bounds) = ("shop".to_owned(), format!("bounds {epoch}"));
    Meta { state_format: 1, job, epoch, bounds, writer_version: "1".to_owned() }
}

/// Entries of `users` users in every fourth shard, `size` bytes each.
fn entries(users: usize, size: usize, fill: u8) -> Entries {
    let mut entries = Entries::new();
    for user in 0..users {
        let value = Some(vec![fill; size]);
        entries.entry((user * 4 % SHARDS) as u8).or_default().insert(format!("huser-{user:04}"), value);
    }
    entries
}

fn write(store: &mut Snapshots, epoch: i64, base: Option<&Manifest>, entries: &Entries) -> Manifest {
    let mut writing = store.write_begin(meta(epoch), base).unwrap();
    for (shard, entries) in entries {
        let entries = entries.iter().map(|(key, value)| (key.as_str(), value.as_deref()));
        writing.block(*shard, entries).unwrap();
    }
    writing.finish().unwrap()
}

fn read(store: &mut Snapshots, manifest: &Manifest) -> Result<Entries> {
    let mut found = Entries::new();
    store.load(manifest, |shard, entries| {
        let entries = entries.into_iter().map(|(key, value)| (key, Some(value)));
        found.entry(shard).or_default().extend(entries);
        Ok(())
    })?;
    found.retain(|_, entries| !entries.is_empty());
    Ok(found)
}

/// A store in memory and one in a folder.
fn each(test: impl Fn(&mut Snapshots)) {
    test(&mut Snapshots::over(Arc::new(InMemory::new()), Path::from("a/b")).unwrap());
    let folder = tempfile::tempdir().unwrap();
    test(&mut Snapshots::open(folder.path().join("new").to_str().unwrap()).unwrap());
}

#[test]
fn deltas_change_add_and_remove_and_old_ones_go() {
    each(|store| {
        let mut wanted = entries(200, 300, 1);
        let first = write(store, 1, None, &wanted);
        assert_eq!(read(store, &first).unwrap(), wanted);
        let mut delta = Entries::new();
        delta.entry(0).or_default().insert("huser-0000".into(), Some(vec![9; 5]));
        delta.entry(4).or_default().insert("huser-0001".into(), None);
        delta.entry(5).or_default().insert("pnew".into(), Some(Vec::new()));
        delta.entry(5).or_default().insert("pnever".into(), None);
        let second = write(store, 4, Some(&first), &delta);
        wanted.get_mut(&0).unwrap().insert("huser-0000".into(), Some(vec![9; 5]));
        wanted.get_mut(&4).unwrap().remove("huser-0001");
        wanted.entry(5).or_default().insert("pnew".into(), Some(Vec::new()));
        assert_eq!(read(store, &second).unwrap(), wanted);
        assert_eq!(store.list("shop").unwrap(), [second.clone(), first.clone()]);
        assert!(!second.wants_full());
        // A delta as large as what it changes asks for a full one.
        let third = write(store, 9, Some(&second), &entries(200, 300, 3));
        assert!(third.wants_full());
        store.prune("shop", 2).unwrap();
        assert_eq!(store.list("shop").unwrap(), [third.clone(), second]);
        let fourth = write(store, 12, None, &wanted);
        store.prune("shop", 1).unwrap();
        assert_eq!(read(store, &fourth).unwrap(), wanted);
        assert_eq!(store.list("shop").unwrap(), [fourth, third], "two are kept at least");
        assert!(store.list("other").unwrap().is_empty());
    });
}

#[test]
fn a_snapshot_without_a_manifest_is_none_and_an_abandoned_one_is_written_again() {
    each(|store| {
        let first = write(store, 1, None, &entries(20, 10, 1));
        let mut writing = store.write_begin(meta(2), Some(&first)).unwrap();
        writing.block(7, [("huser", Some(&b"x"[..]))].into_iter()).unwrap();
        assert!(writing.block(7, std::iter::empty()).is_err(), "a shard comes once");
        drop(writing);
        store.put(&store.path("shop", "segment-00000000000000000003.bin"), b"torn".to_vec()).unwrap();
        assert_eq!(store.list("shop").unwrap(), std::slice::from_ref(&first));
        let second = write(store, 2, Some(&first), &entries(3, 3, 7));
        assert_eq!(store.list("shop").unwrap().len(), 2);
        store.prune("shop", 2).unwrap();
        assert_eq!(store.names("shop").unwrap().len(), 4, "two manifests, two segments");
        assert!(read(store, &second).is_ok());
    });
}

/// R7: a flipped byte and a cut at every 4 KiB of every object of the newest snapshot.
#[test]
fn any_damage_is_detected_and_the_older_snapshot_still_loads() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Snapshots::open(folder.path().to_str().unwrap()).unwrap();
    let wanted = entries(300, 700, 5);
    let older = write(&mut store, 1, None, &wanted);
    let newer = write(&mut store, 2, None, &entries(300, 700, 6));
    let mut damages = 0;
    for name in [newer.name(), newer.segments[0].name.clone()] {
        let file = folder.path().join("shop").join(&name);
        let whole = std::fs::read(&file).unwrap();
        for place in (0..whole.len()).step_by(4_096).chain([whole.len() - 1]) {
            let mut flipped = whole.clone();
            flipped[place] ^= 0x10;
            for damage in [flipped, whole[..place].to_vec()] {
                // The segment's magic is for people; what is loaded begins after it.
                if segment::is_name(&name) && place < 18 && damage.len() == whole.len() {
                    continue;
                }
                damages += 1;
                std::fs::write(&file, &damage).unwrap();
                let listed = store.list("shop").unwrap();
                if let Some(found) = listed.iter().find(|manifest| manifest.meta.epoch == 2) {
                    let error = read(&mut store, found).unwrap_err();
                    assert_eq!(error.disposition, Disposition::Poison, "{name} at {place}: {error}");
                }
                let found = listed.iter().find(|manifest| manifest.meta.epoch == 1).unwrap();
                assert_eq!(read(&mut store, found).unwrap(), wanted);
            }
        }
        std::fs::write(&file, &whole).unwrap();
    }
    assert!(damages > 100, "{damages}");
    assert!(read(&mut store, &newer).is_ok());
    std::fs::remove_file(folder.path().join("shop").join(&newer.segments[0].name)).unwrap();
    assert_eq!(read(&mut store, &newer).unwrap_err().disposition, Disposition::Poison);
    assert_eq!(read(&mut store, &older).unwrap(), wanted);
}

/// R20: what format 1 wrote is read for ever, a newer one is refused by name.
#[test]
fn the_first_format_is_read_and_a_newer_one_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Snapshots::open(folder.path().to_str().unwrap()).unwrap();
    std::fs::create_dir_all(folder.path().join("shop")).unwrap();
    let segment = b"ictflow segment 1\n\0\0\0\x02hu\x01\0\0\0\x03abc\0\0\0\x02hv\0";
    std::fs::write(folder.path().join("shop/segment-00000000000000000003.bin"), segment).unwrap();
    let body = |format: u32| {
        format!(
            r#"{{"format":{format},"state_format":1,"job":"shop","epoch":3,"bounds":"b","writer_version":"1","segments":[{{"name":"segment-00000000000000000003.bin","bytes":39,"blocks":[{{"shard":2,"offset":18,"length":21,"checksum":"{}"}}]}}]}}"#,
            segment::checksum(&segment[18..])
        )
    };
    let file = folder.path().join("shop/epoch-00000000000000000003.manifest.json");
    let put = |body: String| {
        std::fs::write(&file, format!("{}\n{body}", segment::checksum(body.as_bytes()))).unwrap()
    };
    put(body(1));
    let manifest = store.list("shop").unwrap().remove(0);
    let wanted = Entries::from([(2, [("hu".to_owned(), Some(b"abc".to_vec()))].into())]);
    assert_eq!(read(&mut store, &manifest).unwrap(), wanted);
    put(body(2));
    let error = store.list("shop").unwrap_err();
    assert_eq!(error.disposition, Disposition::Fatal);
    assert!(error.to_string().contains("format 2"), "{error}");
}

#[test]
fn a_user_is_taken_out_of_every_snapshot() {
    each(|store| {
        let first = write(store, 1, None, &entries(100, 50, 1));
        let mut delta = Entries::new();
        delta.entry(12).or_default().insert("huser-0003".into(), Some(vec![2; 9]));
        delta.entry(16).or_default().insert("huser-0004".into(), Some(vec![2; 9]));
        write(store, 2, Some(&first), &delta);
        let keys = ["huser-0003".to_owned(), "puser-0003".to_owned()];
        assert_eq!(store.rewrite_without("shop", &keys, 12).unwrap(), 4);
        for name in store.names("shop").unwrap() {
            let bytes = store.get(&store.path("shop", &name), None).unwrap();
            assert!(!bytes.windows(9).any(|part| part == b"user-0003"), "{name}");
        }
        let kept = store.list("shop").unwrap();
        assert_eq!(kept.len(), 2);
        for manifest in &kept {
            assert_eq!(read(store, manifest).unwrap().values().map(BTreeMap::len).sum::<usize>(), 99);
        }
        assert_eq!(store.rewrite_without("shop", &keys, 12).unwrap(), 0, "again changes nothing");
    });
}

#[test]
fn what_a_killed_writer_left_in_a_folder_goes() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Snapshots::open(folder.path().to_str().unwrap()).unwrap();
    write(&mut store, 1, None, &entries(5, 5, 1));
    let half = folder.path().join("shop/segment-00000000000000000009.bin#1");
    std::fs::write(&half, b"huser-0003").unwrap();
    store.prune("shop", 2).unwrap();
    assert!(!half.exists());
    assert_eq!(store.list("shop").unwrap().len(), 1);
}

#[test]
fn places_that_are_none_are_refused() {
    for place in ["ftp://host/x", "s3://user:secret@bucket/x", "az://c/p?sig=secret", "/dev/null/x"] {
        let error = Snapshots::open(place).err().unwrap().to_string();
        assert!(error.contains("snapshots.url") && !error.contains("secret"), "{error}");
    }
}
