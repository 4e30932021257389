import sys

from aigc_ext.cli.main import main

sys.exit(main())
