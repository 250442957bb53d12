//! What a filter of system calls can let through, told from its program (seccomp(2); classic BPF, forward jumps only).
//!
//! A checkpoint brings its filters along, and CRIU puts them back as they are. That there is one says nothing: it may let
//! everything through. So each program is followed on all ways that it can take for a call of which the number and the
//! architecture are known and everything else, the arguments above all, is not.

use std::collections::HashSet;

/// Steps after which a program counts as one that may let the call through; libseccomp's take some hundred.
const MAX_STEPS: usize = 50_000;
/// Most instructions of a program (`BPF_MAXINSNS`).
const MAX_INSTRUCTIONS: usize = 4096;
/// Length of `struct seccomp_data`.
const DATA: u32 = 64;

/// The actions that let a call happen (`linux/seccomp.h`). A tracer can be one of the container's own.
const ALLOW: u32 = 0x7fff_0000;
const LOG: u32 = 0x7ffc_0000;
const TRACE: u32 = 0x7ff0_0000;
const ACTION: u32 = 0xffff_0000;

/// One way through a program: where it is, and what the registers hold as far as that is known.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Way {
    at: usize,
    a: Option<u32>,
    x: Option<u32>,
    memory: [Option<u32>; 16],
}

#[derive(Debug, Clone, Copy)]
struct Instruction {
    code: u16,
    if_true: u8,
    if_false: u8,
    k: u32,
}

/// Whether `program` can let the call `number` of the architecture `arch` (`AUDIT_ARCH_…`) happen, with some arguments.
/// A program that can't be followed may.
pub(crate) fn may_allow(program: &[u8], arch: u32, number: u32) -> bool {
    let Some(program) = parse(program) else { return true };
    let mut ways = vec![Way { at: 0, a: Some(0), x: Some(0), memory: [None; 16] }];
    // Where ways part they are told apart; between that there is one step after another.
    let mut seen = HashSet::new();
    let mut steps = 0;
    while let Some(way) = ways.pop() {
        steps += 1;
        if steps > MAX_STEPS {
            return true;
        }
        // Running off the end or into something unknown is what the kernel refuses to load.
        let Some(instruction) = program.get(way.at) else { continue };
        match step(way, *instruction, arch, number) {
            Step::On(way) => ways.push(way),
            Step::Either(one, other) => {
                ways.extend([one, other].into_iter().filter(|way| seen.insert(way.clone())));
            }
            Step::Refused => {}
            Step::Returns(value) => {
                if value.is_none_or(|value| matches!(value & ACTION, ALLOW | LOG | TRACE)) {
                    return true;
                }
            }
        }
    }
    false
}

fn parse(bytes: &[u8]) -> Option<Vec<Instruction>> {
    let (instructions, rest) = bytes.as_chunks::<8>();
    if !rest.is_empty() || instructions.is_empty() || instructions.len() > MAX_INSTRUCTIONS {
        return None;
    }
    let instruction = |bytes: &[u8; 8]| Instruction {
        code: u16::from_le_bytes([bytes[0], bytes[1]]),
        if_true: bytes[2],
        if_false: bytes[3],
        k: u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
    };
    Some(instructions.iter().map(instruction).collect())
}

enum Step {
    On(Way),
    Either(Way, Way),
    /// The kernel would not have loaded it.
    Refused,
    /// Ends with this value, if it is known.
    Returns(Option<u32>),
}

/// One instruction (`linux/bpf_common.h`: the class in the low three bits).
fn step(mut way: Way, instruction: Instruction, arch: u32, number: u32) -> Step {
    let Instruction { code, if_true, if_false, k } = instruction;
    let at = way.at;
    way.at = at + 1;
    let slot = usize::try_from(k).unwrap_or(usize::MAX);
    match code {
        0x20 => way.a = [number, arch].get(slot / 4).copied().filter(|_| k.is_multiple_of(4)),
        0x00 => way.a = Some(k),
        0x80 => way.a = Some(DATA),
        0x60 => way.a = way.memory.get(slot).copied().flatten(),
        0x01 => way.x = Some(k),
        0x81 => way.x = Some(DATA),
        0x61 => way.x = way.memory.get(slot).copied().flatten(),
        0x02 | 0x03 => {
            let value = if code == 0x02 { way.a } else { way.x };
            if let Some(place) = way.memory.get_mut(slot) {
                *place = value;
            }
        }
        0x07 => way.x = way.a,
        0x87 => way.a = way.x,
        0x06 => return Step::Returns(Some(k)),
        0x16 => return Step::Returns(way.a),
        0x05 => way.at = way.at.saturating_add(slot),
        _ if code & 0x07 == 0x04 => {
            let operand = if code & 0x08 == 0 { Some(k) } else { way.x };
            way.a = calculate(code & 0xf0, way.a, operand);
        }
        _ if code & 0x07 == 0x05 => return jump(way, code, k, if_true, if_false),
        // Nothing else is let into a filter.
        _ => return Step::Refused,
    }
    Step::On(way)
}

fn calculate(operation: u16, a: Option<u32>, operand: Option<u32>) -> Option<u32> {
    let a = a?;
    if operation == 0x80 {
        return Some(a.wrapping_neg());
    }
    let operand = operand?;
    match operation {
        0x00 => Some(a.wrapping_add(operand)),
        0x10 => Some(a.wrapping_sub(operand)),
        0x20 => Some(a.wrapping_mul(operand)),
        0x30 => a.checked_div(operand),
        0x40 => Some(a | operand),
        0x50 => Some(a & operand),
        0x60 => a.checked_shl(operand),
        0x70 => a.checked_shr(operand),
        0x90 => a.checked_rem(operand),
        0xa0 => Some(a ^ operand),
        _ => None,
    }
}

fn jump(way: Way, code: u16, k: u32, if_true: u8, if_false: u8) -> Step {
    let operand = if code & 0x08 == 0 { Some(k) } else { way.x };
    let holds = way.a.zip(operand).map(|(a, operand)| match code & 0xf0 {
        0x10 => a == operand,
        0x20 => a > operand,
        0x30 => a >= operand,
        _ => a & operand != 0,
    });
    let to = |offset: u8| Way { at: way.at + usize::from(offset), ..way.clone() };
    match holds {
        Some(true) => Step::On(to(if_true)),
        Some(false) => Step::On(to(if_false)),
        None => {
            let mut yes = to(if_true);
            if code & 0xf0 == 0x10 {
                yes.a = operand;
            }
            Step::Either(yes, to(if_false))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const X86_64: u32 = 0xc000_003e;
    const REFUSE: u32 = 0x0005_0001;

    fn program(instructions: &[(u16, u8, u8, u32)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (code, if_true, if_false, k) in instructions {
            bytes.extend_from_slice(&code.to_le_bytes());
            bytes.extend_from_slice(&[*if_true, *if_false]);
            bytes.extend_from_slice(&k.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn a_filter_that_only_looks_like_one_lets_everything_through() {
        assert!(may_allow(&program(&[(0x06, 0, 0, ALLOW)]), X86_64, 165));
        // A refusal that is never reached.
        let dead = program(&[(0x05, 0, 0, 1), (0x06, 0, 0, REFUSE), (0x06, 0, 0, ALLOW)]);
        assert!(may_allow(&dead, X86_64, 165));
        assert!(!may_allow(&program(&[(0x06, 0, 0, REFUSE)]), X86_64, 165));
        assert!(may_allow(&program(&[(0x06, 0, 0, LOG)]), X86_64, 165));
    }

    #[test]
    fn a_way_that_an_argument_opens_is_found() {
        let hidden = |offset: u32| {
            program(&[
                (0x20, 0, 0, offset),
                (0x15, 1, 0, 0x600d_c0de),
                (0x06, 0, 0, REFUSE),
                (0x06, 0, 0, ALLOW),
            ])
        };
        for offset in [8, 16, 20, 60] {
            assert!(may_allow(&hidden(offset), X86_64, 165), "offset {offset}");
        }
        assert!(!may_allow(&hidden(0), X86_64, 165));
        assert!(may_allow(&hidden(0), X86_64, 0x600d_c0de));
        // By way of arithmetic and memory.
        let round = program(&[
            (0x20, 0, 0, 0),
            (0x54, 0, 0, 0xff),
            (0x02, 0, 0, 3),
            (0x61, 0, 0, 3),
            (0x00, 0, 0, 165),
            (0x1d, 0, 1, 0),
            (0x06, 0, 0, REFUSE),
            (0x06, 0, 0, ALLOW),
        ]);
        assert!(!may_allow(&round, X86_64, 165));
        assert!(may_allow(&round, X86_64, 166));
    }

    #[test]
    fn the_architecture_counts() {
        let only = program(&[(0x20, 0, 0, 4), (0x15, 1, 0, X86_64), (0x06, 0, 0, 0), (0x06, 0, 0, ALLOW)]);
        assert!(may_allow(&only, X86_64, 1) && !may_allow(&only, 0x4000_0003, 1));
    }

    #[test]
    fn what_cannot_be_followed_may_let_through() {
        assert!(may_allow(&[], X86_64, 1));
        assert!(may_allow(&[0; 12], X86_64, 1));
        // Each test of an argument doubles the ways as long as the registers tell them apart.
        let mut wide = Vec::new();
        for n in 0..16u32 {
            wide.extend([(0x20, 0, 0, 16), (0x15, 0, 1, n), (0x00, 0, 0, 1), (0x02, 0, 0, n)]);
        }
        wide.push((0x06, 0, 0, REFUSE));
        may_allow(&program(&wide), X86_64, 1);
    }

    proptest! {
        #[test]
        fn no_program_makes_it_panic_or_hang(bytes in prop::collection::vec(any::<u8>(), 0..800), number: u32) {
            may_allow(&bytes, X86_64, number);
        }
    }
}
