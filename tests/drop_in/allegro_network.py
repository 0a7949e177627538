"""A network of nequip-allegro: ``network(dtype)`` and ``graph(dtype)``, energies and forces by
``evaluate``."""

from nequip_network import evaluate, graph  # noqa: F401  (sets nequip's global state, too)

from allegro.model import AllegroModel  # isort: skip


def network(dtype, features=16, layers=2, l_max=2, **options):
    return AllegroModel(
        seed=0,
        model_dtype=str(dtype).removeprefix("torch."),
        r_max=4.5,
        type_names=["C", "Si"],
        l_max=l_max,
        parity=True,
        num_layers=layers,
        num_scalar_features=64,
        num_tensor_features=features,
        avg_num_neighbors=20.0,
        radial_chemical_embed={"_target_": "allegro.nn.TwoBodyBesselScalarEmbed", "num_bessels": 8},
        **options,
    )
