use super::*;

fn board(vcpus: usize) -> Board {
    Board::new(&BoardConfig {
        vcpus,
        memory: 512 << 20,
        start_time: 1_700_000_000,
        fw_cfg: Vec::new(),
        fw_cfg_files: Vec::new(),
    })
}

#[test]
fn a_new_board_is_quiet() {
    let board = board(4);
    assert_eq!(board.next_deadline(), None);
    assert!(!board.has_signals());
    assert!((0..4).all(|vcpu| !board.pending_interrupt(vcpu)));
}
