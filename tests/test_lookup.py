import pytest

from p2p_jax.lookup import UserError, pick, shortlist


def test_pick_lists_the_choices_and_the_nearest():
    table = {'unet': 1, 'nafnet': 2}
    assert pick(table, 'unet', 'generator.name') == 1
    with pytest.raises(UserError, match=r"generator.name='uent' is unknown. Available: nafnet, unet. Did you mean 'un"):
        pick(table, 'uent', 'generator.name')


def test_shortlist_counts_what_it_leaves_out():
    lines = [f'file {i}' for i in range(12)]
    assert shortlist(lines).splitlines()[1:] == [f'  file {i}' for i in range(10)] + ['  … and 2 more']
    assert shortlist(lines[:10]).count('\n') == 10
