use super::*;

fn value(code: &[u8]) -> Result<u64, Failed> {
    let expression = Expression::new(code).expect("an expression");
    let mut stack = Stack(Vec::new());
    // What needs no machine.
    let mut at = 0;
    loop {
        let opcode = expression.0[at];
        let operand = operand_of(opcode).ok_or(Failed)?;
        let n = expression.0[at + 1..at + 1 + operand]
            .iter()
            .fold(0, |n, &byte| n << 8 | u64::from(byte));
        at += 1 + operand;
        match opcode {
            0x22..=0x25 => stack.push(n)?,
            0x27 => return stack.pop(),
            _ => stack.operate(opcode, n)?,
        }
    }
}

#[test]
fn values_are_computed_as_the_manual_says() {
    // const8 7, const8 3, then one opcode, end.
    let of = |opcode| value(&[0x22, 7, 0x22, 3, opcode, 0x27]);
    let expected = [
        (0x02, 10),
        (0x03, 4),
        (0x04, 21),
        (0x05, 2),
        (0x06, 2),
        (0x07, 1),
        (0x08, 1),
        (0x09, 56),
        (0x0b, 0),
        (0x0f, 3),
        (0x10, 7),
        (0x11, 4),
        (0x13, 0),
        (0x14, 0),
        (0x15, 0),
        (0x2b, 7),
    ];
    for (opcode, result) in expected {
        assert_eq!(of(opcode), Ok(result), "{opcode:#x}");
    }
}

#[test]
fn signs_are_extended_and_cut_off_by_bits() {
    assert_eq!(
        value(&[0x22, 0x80, 0x16, 8, 0x27]),
        Ok(0xffff_ffff_ffff_ff80)
    );
    assert_eq!(value(&[0x23, 0x12, 0x34, 0x2a, 8, 0x27]), Ok(0x34));
    assert_eq!(value(&[0x22, 0x80, 0x16, 64, 0x27]), Ok(0x80));
    // -8 >> 1, with its sign.
    assert_eq!(
        value(&[0x22, 0xf8, 0x16, 8, 0x22, 1, 0x0a, 0x27]),
        Ok(0xffff_ffff_ffff_fffc)
    );
}

#[test]
fn the_stack_is_moved_about_as_the_manual_says() {
    // 1 2 3 rot gives 3 1 2.
    let all = [0x22, 1, 0x22, 2, 0x22, 3, 0x33];
    assert_eq!(value(&[&all[..], &[0x27]].concat()), Ok(2));
    assert_eq!(value(&[&all[..], &[0x29, 0x27]].concat()), Ok(1));
    assert_eq!(value(&[&all[..], &[0x29, 0x29, 0x27]].concat()), Ok(3));
    // 1 2 3 pick 2 gives 1 on top.
    assert_eq!(value(&[0x22, 1, 0x22, 2, 0x22, 3, 0x32, 2, 0x27]), Ok(1));
}

#[test]
fn what_has_no_value_fails() {
    assert_eq!(value(&[0x22, 1, 0x22, 0, 0x05, 0x27]), Err(Failed));
    assert_eq!(value(&[0x02, 0x27]), Err(Failed));
    assert_eq!(value(&[0x32, 9, 0x27]), Err(Failed));
}

#[test]
fn tracing_and_what_is_no_bytecode_are_refused() {
    assert_eq!(Expression::new(&[0x0c]), Err(AgentError::Opcode(0x0c)));
    assert_eq!(
        Expression::new(&[0x34, 0, 0]),
        Err(AgentError::Opcode(0x34))
    );
    assert_eq!(Expression::new(&[0x25, 0]), Err(AgentError::Short));
    assert_eq!(
        Expression::new(&[0x26, 1, 0]),
        Err(AgentError::Register(256))
    );
    assert_eq!(
        Expression::new(&vec![0x27; LONGEST + 1]),
        Err(AgentError::Long)
    );
}
