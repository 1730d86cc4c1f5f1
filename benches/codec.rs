//! Messages to bytes and back.
//!
//! `cargo bench --bench codec`

mod fixture;

use castra::types::{Position, SeqNum, SessionId, View};
use castra::wire::frame::Messages;
use castra::wire::{FrameBuffer, Message, Outcome, ReplyEntry, ReplyKind, ReplyResult};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fixture::{BATCH, OPERATION, Parties, frames, pre_prepare, vote};

fn messages(c: &mut Criterion) {
    let parties = Parties::new(4);
    let one_pack = pre_prepare(vec![parties.pack(1, BATCH, false)]);
    let packs_of_one = pre_prepare((0..BATCH as u64).map(|t| parties.pack(t, 1, false)).collect());
    let votes = vec![Message::Prepare(vote()), Message::Commit(vote())];
    for (name, messages) in [
        ("pre-prepare, one pack of 64 requests", vec![one_pack]),
        ("pre-prepare, 64 packs of one request", vec![packs_of_one]),
        ("prepare and commit", votes),
    ] {
        let mut buffer = FrameBuffer::default();
        let bytes = frames(&messages).bytes().clone();
        let mut group = c.benchmark_group(format!("codec/{name}"));
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function("encode", |b| {
            b.iter(|| {
                assert!(messages.iter().all(|message| buffer.push(message)));
                buffer.take()
            });
        });
        group.bench_function("decode", |b| {
            b.iter(|| assert!(Messages::new(bytes.clone()).all(|message| message.is_ok())));
        });
        group.finish();
    }
}

fn replies(c: &mut Criterion) {
    let reply = |i| ReplyEntry {
        session: SessionId(1),
        t: i as u64,
        kind: ReplyKind::Tentative,
        position: Position::new(SeqNum(7), i),
        result: ReplyResult::Full(Outcome::Done(vec![0; OPERATION].into())),
    };
    let replies: Vec<ReplyEntry> = (0..BATCH).map(reply).collect();
    let mut buffer = FrameBuffer::default();
    assert!(buffer.push_replies(View(0), &replies));
    let bytes = buffer.take().bytes().clone();
    let mut group = c.benchmark_group("codec/64 replies");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function("encode", |b| {
        b.iter(|| {
            assert!(buffer.push_replies(View(0), &replies));
            buffer.take()
        });
    });
    group.bench_function("decode", |b| {
        b.iter(|| Messages::new(bytes.clone()).next_replies().expect("a frame").expect("of replies"));
    });
    group.finish();
}

criterion_group!(benches, messages, replies);
criterion_main!(benches);
