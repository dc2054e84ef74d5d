//! What every OSD must do, whichever kind it is: one function, run over each of them by tests. It panics where one does not.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;

use super::{Assert, Fragment, FragmentWriter, Osd, Priority, Purpose, Sequence, Small, Title};
use super::{Update, Wanted};
use crate::erasure::Layout;
use crate::fault::Kind;
use crate::name::{FragmentId, ObjectId};
use crate::preset::Policy;
use crate::trailer::Part;

/// What is given up may take so long until it is gone.
const GONE_WITHIN: Duration = Duration::from_secs(20);

/// Everything the trait promises, on an OSD that is ours and empty.
pub async fn conforms(osd: &dyn Osd) {
    room(osd).await;
    fragments(osd).await;
    pieces(osd).await;
    shards(osd).await;
    side_by_side(osd).await;
    given_up(osd).await;
    not_what_was_meant(osd).await;
    sequences(osd).await;
}

/// To the client of a backend that it does not belong to it is out of reach, and nothing is changed.
pub async fn refuses_strangers(ours: &dyn Osd, theirs: &dyn Osd) {
    let wanted = put(ours, &noise(1000), 7).await;
    for outcome in [
        theirs.room().await.map(drop),
        theirs.create(title(1)).await.map(drop),
        theirs.open(wanted, Priority::Foreground).await.map(drop),
        theirs.describe(wanted.file).await.map(drop),
        theirs.remove(wanted.file).await,
        theirs.apply(Sequence::removing([wanted.file])).await.map(drop),
        theirs.list(wanted.file.0[0]).await.map(drop),
    ] {
        assert_eq!(outcome.unwrap_err().kind, Kind::Unavailable);
    }
    check(ours, wanted, &noise(1000)).await;
    ours.remove(wanted.file).await.unwrap();
}

/// Bytes that are the same every time, and like no others.
#[must_use]
pub fn noise(len: usize) -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ len as u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// Of a fragment that is a whole object.
#[must_use]
pub fn title(len: u64) -> Title {
    let layout = Layout { len, policy: Policy::SINGLE, unit: 1 << 20 };
    let part = Part { object: ObjectId::random(), layout, object_crc: 0, index: 0 };
    let (namespace, name, priority) = ("ns".into(), "name".into(), Priority::Foreground);
    let (file, purpose) = (FragmentId::random(), Purpose::Data);
    Title { file, namespace, name, part, created_ms: 7, purpose, priority }
}

/// Puts a fragment in pieces of about so many bytes, and keeps it.
pub async fn put(osd: &dyn Osd, body: &Bytes, piece: usize) -> Wanted {
    put_as(osd, title(body.len() as u64), body, piece).await
}

async fn put_as(osd: &dyn Osd, title: Title, body: &Bytes, piece: usize) -> Wanted {
    let (file, len) = (title.file, body.len() as u64);
    let mut writer = osd.create(title).await.unwrap();
    append(&mut *writer, body, piece).await;
    let crc = writer.finish(None).await.unwrap();
    assert_eq!(crc, crc32fast::hash(body));
    writer.keep();
    Wanted { file, len, crc }
}

async fn append(writer: &mut dyn FragmentWriter, body: &Bytes, piece: usize) {
    for at in (0..body.len()).step_by(piece) {
        let one = body.slice(at..(at + piece).min(body.len()));
        let middle = one.len() / 3;
        writer.append(vec![one.slice(..middle), one.slice(middle..)]).await.unwrap();
    }
}

/// Opens a fragment that is there.
pub async fn open(osd: &dyn Osd, wanted: Wanted) -> Arc<dyn Fragment> {
    osd.open(wanted, Priority::Foreground).await.unwrap().expect("it is there")
}

async fn check(osd: &dyn Osd, wanted: Wanted, body: &Bytes) {
    let len = body.len() as u64;
    let fragment = open(osd, wanted).await;
    assert!(!fragment.is_removed());
    for (from, to) in [(0, len), (len / 2, len), (len / 3, len / 2), (len, len), (len / 2, len / 2)]
    {
        let read = fragment.clone().read(from, to, Priority::Foreground).await.unwrap();
        assert!(read == body.slice(from as usize..to as usize), "{from}..{to} of {len}");
    }
    let background = fragment.read(0, len, Priority::Background).await.unwrap();
    assert!(background == *body);
}

async fn room(osd: &dyn Osd) {
    let room = osd.room().await.unwrap();
    assert!(room.free_bytes > 0 && room.free_bytes <= room.left_bytes, "{room:?}");
    assert!(room.left_bytes <= room.capacity_bytes, "{room:?}");
    assert!(!osd.place().is_empty());
}

async fn fragments(osd: &dyn Osd) {
    for len in [0, 1, 4095, 4096, 65_535, 65_536, 65_537, (3 << 20) + 5] {
        let body = noise(len);
        let wanted = put(osd, &body, 1 << 20).await;
        check(osd, wanted, &body).await;
        assert_eq!(osd.list(wanted.file.0[0]).await.unwrap(), [wanted.file]);
        let said = osd.describe(wanted.file).await.unwrap().unwrap();
        assert_eq!((said.id, said.len, said.crc), (wanted.file, wanted.len, wanted.crc));
        let names = (said.namespace.as_str(), said.name.as_str(), said.created_ms);
        assert_eq!(names, ("ns", "name", 7));
        assert_eq!(said.part.object_crc, wanted.crc);
        osd.remove(wanted.file).await.unwrap();
        osd.remove(wanted.file).await.unwrap();
        assert!(osd.open(wanted, Priority::Foreground).await.unwrap().is_none());
        assert!(osd.describe(wanted.file).await.unwrap().is_none());
        assert!(osd.open_raw(wanted.file).await.unwrap().is_none());
        assert_eq!(osd.list(wanted.file.0[0]).await.unwrap(), []);
    }
}

async fn pieces(osd: &dyn Osd) {
    let body = noise(2_500_000);
    for piece in [100_000, 4096, 1 << 20, 2_500_000] {
        let title = Title { priority: Priority::Background, ..title(body.len() as u64) };
        let wanted = put_as(osd, title, &body, piece).await;
        check(osd, wanted, &body).await;
        osd.remove(wanted.file).await.unwrap();
    }
    // The object's checksum is not the fragment's when there are others.
    let title = Title { purpose: Purpose::Metadata, ..title(10) };
    let file = title.file;
    let mut writer = osd.create(title).await.unwrap();
    writer.append(vec![noise(10)]).await.unwrap();
    writer.finish(Some(77)).await.unwrap();
    writer.keep();
    assert_eq!(osd.describe(file).await.unwrap().unwrap().part.object_crc, 77);
    osd.remove(file).await.unwrap();
}

async fn shards(osd: &dyn Osd) {
    let mut of_shard = Vec::new();
    for n in 0..25_u8 {
        let mut file = FragmentId([if n % 5 == 4 { 0xab } else { 0xaa }; 16]);
        file.0[15] = n;
        let title = Title { file, ..title(5) };
        put_as(osd, title, &noise(5), 5).await;
        of_shard.push(file);
    }
    for shard in [0xaa, 0xab] {
        let mut found = osd.list(shard).await.unwrap();
        found.sort_unstable();
        let mut there: Vec<FragmentId> = of_shard.clone();
        there.retain(|file| file.0[0] == shard);
        there.sort_unstable();
        assert_eq!(found, there);
    }
    for file in of_shard {
        osd.remove(file).await.unwrap();
    }
}

async fn side_by_side(osd: &dyn Osd) {
    let bodies: Vec<Bytes> = (0..8).map(|n| noise(700_000 + n)).collect();
    let put_all = bodies.iter().map(|body| put(osd, body, 300_000));
    let wanted = join_all(put_all).await;
    join_all(wanted.iter().zip(&bodies).map(|(wanted, body)| check(osd, *wanted, body))).await;
    for wanted in wanted {
        osd.remove(wanted.file).await.unwrap();
    }
}

async fn given_up(osd: &dyn Osd) {
    // Before anything came, in the middle, all but the end.
    for arrived in [0, 1 << 20, 2 << 20] {
        for is_dropped in [true, false] {
            let title = title(2 << 20);
            let (file, whole) = (title.file, noise(2 << 20));
            let mut writer = osd.create(title).await.unwrap();
            append(&mut *writer, &whole.slice(..arrived), 1 << 20).await;
            if is_dropped {
                drop(writer)
            } else {
                writer.discard().await
            }
            gone(osd, file).await;
        }
    }
    // What is stored and not wanted.
    let title = title(100);
    let file = title.file;
    let mut writer = osd.create(title).await.unwrap();
    writer.append(vec![noise(100)]).await.unwrap();
    writer.finish(None).await.unwrap();
    writer.discard().await;
    gone(osd, file).await;
    for (announced, given) in [(10, 11), (10, 9)] {
        let mut writer = osd.create(self::title(announced)).await.unwrap();
        let mut outcome = writer.append(vec![noise(given)]).await;
        if outcome.is_ok() {
            outcome = writer.finish(None).await.map(drop);
        }
        assert!(outcome.is_err(), "{given} bytes of {announced}");
        writer.discard().await;
    }
}

async fn gone(osd: &dyn Osd, file: FragmentId) {
    let begun = std::time::Instant::now();
    while osd.describe(file).await.is_ok_and(|found| found.is_some()) {
        assert!(begun.elapsed() < GONE_WITHIN, "fragment {file} stays");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    while !osd.list(file.0[0]).await.unwrap().is_empty() {
        assert!(begun.elapsed() < GONE_WITHIN, "fragment {file} is listed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn not_what_was_meant(osd: &dyn Osd) {
    let body = noise(200_000);
    let wanted = put(osd, &body, 200_000).await;
    for other in
        [Wanted { crc: wanted.crc ^ 1, ..wanted }, Wanted { len: wanted.len - 1, ..wanted }]
    {
        let fault = osd.open(other, Priority::Foreground).await.err().expect("it is another");
        assert_eq!(fault.kind, Kind::Corrupt, "{fault}");
    }
    let fragment = open(osd, wanted).await;
    osd.remove(wanted.file).await.unwrap();
    // One that is open may go on being read, as what it was, or says that it is gone.
    match fragment.clone().read(0, 10, Priority::Foreground).await {
        Ok(read) => assert!(read == body.slice(..10)),
        Err(fault) => assert_eq!(fault.kind, Kind::Corrupt),
    }
    assert!(fragment.is_removed());
}

fn small(body: &Bytes) -> (Small, Wanted) {
    let title = title(body.len() as u64);
    let wanted = Wanted { file: title.file, len: body.len() as u64, crc: crc32fast::hash(body) };
    let bytes = vec![body.slice(..body.len() / 2), body.slice(body.len() / 2..)];
    (Small { title, bytes, object_crc: None }, wanted)
}

async fn sequences(osd: &dyn Osd) {
    let bodies = [0, 1, 5000, 1 << 20].map(noise);
    let (stores, wanted): (Vec<Small>, Vec<Wanted>) = bodies.iter().map(small).unzip();
    let old = put(osd, &noise(100), 100).await;
    let mut updates: Vec<Update> = stores.into_iter().map(Update::Store).collect();
    updates.insert(1, Update::Remove(old.file));
    // What was never there, too.
    updates.push(Update::Remove(FragmentId::random()));
    let mut asserts: Vec<Assert> = wanted.iter().map(|new| Assert::Absent(new.file)).collect();
    asserts.push(Assert::Present(old));
    let whole = Sequence { asserts, updates, priority: Priority::Background };
    let failed = |fault: crate::fault::Fault, what: &str| {
        assert_eq!(fault.kind, Kind::AssertFailed, "{what}: {fault}");
    };
    // One assert that does not hold, the last one: nothing is done.
    let other = Wanted { crc: old.crc ^ 1, ..old };
    let longer = Wanted { len: old.len + 1, ..old };
    let none = Wanted { file: FragmentId::random(), ..old };
    let wrong = [other, longer, none].map(Assert::Present);
    for wrong in wrong.into_iter().chain([Assert::Absent(old.file)]) {
        let mut sequence = whole.clone();
        sequence.asserts.push(wrong);
        failed(osd.apply(sequence).await.unwrap_err(), &format!("{wrong:?}"));
    }
    // Nor when one of its fragments is not what its title says, or one is updated twice.
    let (mut short, _) = small(&noise(50));
    short.bytes.pop();
    let again = Update::Remove(old.file);
    for bad in [Update::Store(short), again] {
        let mut sequence = whole.clone();
        sequence.updates.push(bad);
        let fault = osd.apply(sequence).await.unwrap_err();
        assert!(matches!(fault.kind, Kind::Invalid | Kind::Bug), "{fault}");
    }
    for new in &wanted {
        assert!(osd.describe(new.file).await.unwrap().is_none());
    }
    check(osd, old, &noise(100)).await;

    let crcs: Vec<u32> = wanted.iter().map(|new| new.crc).collect();
    assert_eq!(osd.apply(whole.clone()).await.unwrap(), crcs);
    for (new, body) in wanted.iter().zip(&bodies) {
        check(osd, *new, body).await;
    }
    assert!(osd.describe(old.file).await.unwrap().is_none());
    failed(osd.apply(whole).await.unwrap_err(), "a second time");
    // Asserts alone, then all of it goes at once.
    let asserts = wanted.iter().map(|new| Assert::Present(*new)).collect();
    let asserted = osd.apply(Sequence { asserts, ..Sequence::default() }).await.unwrap();
    assert!(asserted.is_empty());
    let gone = Sequence::removing(wanted.iter().map(|new| new.file));
    for _ in 0..2 {
        assert!(osd.apply(gone.clone()).await.unwrap().is_empty());
    }
    for new in wanted {
        assert!(osd.describe(new.file).await.unwrap().is_none());
    }
    assert!(osd.apply(Sequence::default()).await.unwrap().is_empty());
}

/// Of sequences that store the same fragment at the same time one wins, on kinds that keep them apart.
pub async fn keeps_sequences_apart(osd: &dyn Osd) {
    let (first, wanted) = small(&noise(3000));
    let racing = (0..8).map(|_| osd.apply(Sequence::storing(first.clone())));
    let outcomes = join_all(racing).await;
    let is_assert = |fault: crate::fault::Fault| fault.kind == Kind::AssertFailed;
    let won = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert!(won == 1 && outcomes.into_iter().filter_map(Result::err).all(is_assert), "{won} won");
    check(osd, wanted, &noise(3000)).await;
    osd.remove(wanted.file).await.unwrap();
}
