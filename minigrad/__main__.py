"""`python -m minigrad -v`: the walkthrough, which is part of the library."""

from tinyformer.minigrad_walkthrough import main

raise SystemExit(main())
